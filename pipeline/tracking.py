"""One MLflow run per stage: its params, figures over steps, system metrics, data digests and git commit.

Tracking must cost a stage next to nothing and must not decide whether it succeeds:

- MLflow takes seconds to import and every call takes milliseconds, so all of it happens in one thread beside the
  stage; figures wait in a buffer and go in batches.
- A server that does not answer at the start is refused at once, as a mistake in params. One that goes away later is
  waited for: figures stay in the buffer, one warning says so, and another one at the end if some were never sent.
  Tables of samples are kept likewise, but only the last few.
- The run of an attempt that did not end well is continued by the next attempt at the same work. Its id lies in the
  stage's scratch folder until the run is finished.

The default store is SQLite under runs/mlflow. Two processes that meet a new store at once would both migrate its
database, so it is opened under a file lock.
"""

import fcntl
import math
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from pipeline.files import atomic_file
from pipeline.pages import table_page
from pipeline.params import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

    Figure = tuple[str, float, int, int]  # name, value, milliseconds since the epoch, step

SEND_SECONDS = 5.0  # between two batches
BATCH = 1000  # figures in a call: the REST interface takes no more
PARAMS_BATCH = 100  # likewise
WAITING = 200_000  # figures that wait for a server to come back; beyond that the oldest are given up
WAITING_TABLES = 20  # likewise
ANSWER_SECONDS = 5.0
SYSTEM_SECONDS = 10.0  # between two samples of the system metrics
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


@dataclass(frozen=True)
class Description:
    """What a run is of."""

    stage: str
    key: str  # pipeline.job.Identity.key
    params: Mapping[str, Any]  # section, dotted where it is a part of one → values, nested
    inputs: Mapping[str, str]  # path in the project → SHA-256


@dataclass(frozen=True)
class Recorded:
    """What a run has logged so far."""

    run_id: str
    stage: str
    params: Mapping[str, str]  # section.key → text
    steps: tuple[tuple[int, Mapping[str, float]], ...]  # step and the figures noted together, in the order of noting:
    # a step comes again where a run went on from a checkpoint before it


class Tracker:
    """The MLflow run of one attempt at a stage, open while its block runs.

    What MLflow refuses for another reason than an absent server (a store of another version, say) is raised by a later
    `log` or at the end of the block.
    """

    def __init__(self, options: Tracking, root: Path, description: Description) -> None:
        """Raises InputError where `options.uri` names a server that does not answer."""
        if options.uri is not None:
            require_answer(options.uri)
        self._buffer: deque[Figure] = deque()
        self._tables: deque[tuple[str, str]] = deque(maxlen=WAITING_TABLES)  # path among the artifacts, content
        self._lost = 0
        self._warned = False
        self._sent_at = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._opening = self._thread.submit(_Run, options, root, description)
        self._sending = self._thread.submit(self._send)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Note the figures of a step."""
        now = time.time_ns() // 1_000_000
        for name, value in metrics.items():
            assert re.fullmatch(r"[\w./: -]+", name, re.ASCII), f"MLflow takes no metric named {name!r}"
            self._buffer.append((name, float(value), now, step))
        self._send_now_and_then()

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, str | float]]) -> None:
        """Keep a table as a page among the run's artifacts: `<name>/step-<step>.html`."""
        self._tables.append((f"{name}/step-{step:06}.html", table_page(f"{name}: step {step}", rows)))
        self._send_now_and_then()

    def _send_now_and_then(self) -> None:
        if self._sending.done() and time.monotonic() - self._sent_at >= SEND_SECONDS:
            self._sending.result()
            self._sent_at = time.monotonic()
            self._sending = self._thread.submit(self._send)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; waits until the run is open."""
        return self._opening.result().id

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, SystemExit) else "FAILED"
        closing = self._thread.submit(self._close, status)
        self._thread.shutdown()
        if error is None:  # else the stage's own error is the one to show
            closing.result()

    def _send(self) -> None:
        """In the thread: send what waits, as far as the server takes it."""
        from mlflow.exceptions import MlflowException

        run = self._opening.result()
        try:
            while batch := list(islice(self._buffer, BATCH)):
                run.send(batch)
                for _ in batch:
                    self._buffer.popleft()
            for path, content in list(self._tables):
                run.keep(path, content)
                self._tables.remove((path, content))
        except (MlflowException, OSError) as error:  # OSError: what keeps artifacts may be another server
            self._warn(f"figures wait, because the tracking server does not take them: {error}")
            while len(self._buffer) > WAITING:
                self._buffer.popleft()
                self._lost += 1

    def _close(self, status: str) -> None:
        """In the thread: send the rest and end the run."""
        from mlflow.exceptions import MlflowException

        self._send()
        lost = self._lost + len(self._buffer)
        try:
            self._opening.result().close(status)
        except MlflowException as error:
            self._warn(f"the run could not be closed: {error.message}")
        if lost:
            print(f"tracking: {lost} figures were never sent", file=sys.stderr)
        if self._tables:
            print(f"tracking: {len(self._tables)} tables were never sent", file=sys.stderr)

    def _warn(self, message: str) -> None:
        if not self._warned:
            print(f"tracking: {message}", file=sys.stderr)
        self._warned = True


class _Run:
    """An open run in MLflow's store. All of it is used from one thread."""

    def __init__(self, options: Tracking, root: Path, description: Description) -> None:
        self._memo = root / "runs" / description.stage / description.key / "mlflow_run"
        with _lock(root):
            self._client, experiment = _connect(options, root)
        self.id = self._continued() or self._created(experiment, root, description)

        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            self.id, SYSTEM_SECONDS, resume_logging=True, tracking_uri=self._client.tracking_uri
        )
        self._monitor.start()

    def _continued(self) -> str | None:
        """The run of an earlier attempt at the same work that did not finish."""
        from mlflow.exceptions import MlflowException

        if not self._memo.is_file():
            return None
        run_id = self._memo.read_text(encoding="utf-8")
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # it is in another store
        return run_id

    def _created(self, experiment: str, root: Path, description: Description) -> str:
        from mlflow.entities import Dataset, DatasetInput, Param

        tags = {"stage": description.stage, "key": description.key, **_git_tags(root)}
        run_id: str = self._client.create_run(experiment, run_name=description.stage, tags=tags).info.run_id
        params = [Param(name, value) for name, value in flatten(description.params).items()]
        for start in range(0, len(params), PARAMS_BATCH):
            self._client.log_batch(run_id, params=params[start : start + PARAMS_BATCH])
        inputs = [
            # MLflow keeps 36 characters of a digest.
            DatasetInput(Dataset(name=path, digest=digest[:32], source_type="local", source=path))
            for path, digest in description.inputs.items()
        ]
        self._client.log_inputs(run_id, datasets=inputs)
        with atomic_file(self._memo) as temporary:  # last: a run that is not fully described is not continued
            temporary.write_text(run_id, encoding="utf-8")
        return run_id

    def send(self, figures: "list[Figure]") -> None:
        from mlflow.entities import Metric

        self._client.log_batch(self.id, metrics=[Metric(*figure) for figure in figures])

    def keep(self, path: str, content: str) -> None:
        self._client.log_text(self.id, content, path)

    def close(self, status: str) -> None:
        self._monitor.collect_metrics()  # a last sample, so that a short stage has one too
        self._monitor.publish_metrics(self._monitor.aggregate_metrics())
        self._monitor.finish()
        self._client.set_terminated(self.id, status)
        if status == "FINISHED":
            self._memo.unlink()


def read_run(options: Tracking, root: Path, run: str) -> Recorded:
    """Read a run's figures over steps, without MLflow's own and the final ones. It may still be going on.

    `run` is a stage, of which the newest run is taken, or a run's id or how it begins. Raises InputError where there is
    none or the beginning fits several.
    """
    if options.uri is not None:
        require_answer(options.uri)
    elif not _store(root).is_file():
        raise InputError(f"{run}: no run: nothing has run in {root} yet")
    with _lock(root):
        client, experiment = _connect(options, root)
    found = client.get_run(_run_id(client, experiment, run))
    rows: dict[tuple[int, int], dict[str, float]] = {}
    for name in found.data.metrics:
        if name.startswith(("system/", "final/")):
            continue
        for metric in client.get_metric_history(found.info.run_id, name):
            # MLflow keeps an infinite value as the largest finite one.
            value = math.copysign(math.inf, metric.value) if abs(metric.value) >= sys.float_info.max else metric.value
            rows.setdefault((metric.timestamp, metric.step), {})[name] = value
    steps = tuple((step, figures) for (_, step), figures in sorted(rows.items(), key=lambda row: row[0]))
    return Recorded(found.info.run_id, found.data.tags.get("stage", found.info.run_name), found.data.params, steps)


def keep_file(options: Tracking, root: Path, run_id: str, file: Path) -> None:
    """Keep a file among a run's artifacts, in place of one of the same name. Raises InputError without a server."""
    if options.uri is not None:
        require_answer(options.uri)
    with _lock(root):
        client, _ = _connect(options, root)
    client.log_artifact(run_id, file)


def _run_id(client: "MlflowClient", experiment: str, run: str) -> str:
    """The id of the run that a person means."""
    if not re.fullmatch(r"[\w@-]+", run, re.ASCII):
        raise InputError(f"{run!r}: must be a stage or the beginning of a run's id")
    newest = client.search_runs([experiment], f"tags.stage = '{run}'", max_results=1, order_by=["start_time DESC"])
    if newest:
        return newest[0].info.run_id
    begun = client.search_runs([experiment], f"attributes.run_id LIKE '{run}%'", max_results=2) if run.isalnum() else []
    if len(begun) == 1:
        return begun[0].info.run_id
    if begun:
        raise InputError(f"{run}: several runs begin so; give more of the id")
    stages = sorted({known.data.tags.get("stage", "") for known in client.search_runs([experiment])} - {""})
    raise InputError(
        f"{run}: no run; give the beginning of a run's id or one of {', '.join(stages) or 'no stages yet'}"
    )


def require_answer(uri: str) -> None:
    """Raises InputError where `uri` is an http address at which nobody answers within ANSWER_SECONDS."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers, if only to ask who we are
    except OSError as error:
        raise InputError(f"tracking.uri: {uri}: no tracking server answers: {error}") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as `section.key` → text."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            flat |= flatten({str(index): entry for index, entry in enumerate(value)}, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _store(root: Path) -> Path:
    return root / "runs" / "mlflow" / "mlflow.db"


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    folder = _store(root).parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _connect(options: Tracking, root: Path) -> "tuple[MlflowClient, str]":
    """A client of the store and the id of the experiment, both made where they are missing."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    client = MlflowClient(options.uri or f"sqlite:///{_store(root)}")
    experiment = client.get_experiment_by_name(options.experiment)
    if experiment is not None:
        return client, experiment.experiment_id
    artifacts = (_store(root).parent / "artifacts").as_uri() if options.uri is None else None
    return client, client.create_experiment(options.experiment, artifact_location=artifacts)


def _git_tags(root: Path) -> dict[str, str]:
    """The commit that is checked out, and whether tracked files differ from it. dvc.lock changes with every stage."""
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    if commit is None or changes is None:
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changes)).lower()}


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None outside a repository and where there is no git."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
