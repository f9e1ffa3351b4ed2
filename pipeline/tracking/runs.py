"""One MLflow run per stage: its params, figures over steps, system metrics, data digests and git commit.

Tracking must cost a stage next to nothing and must not decide whether it succeeds:

- MLflow takes seconds to import and every call takes milliseconds, so all of it happens in one thread beside the
  stage; figures wait in a buffer and go in batches.
- A server that does not answer at the start is refused at once, as a mistake in params. One that goes away later is
  waited for: figures stay in the buffer, one warning says so, and another one at the end if some were never sent.
  Tables of samples are kept likewise, but only the last few.
- The run of an attempt that did not end well is continued by the next attempt at the same work. Its id lies in the
  stage's scratch folder until the run is finished.
"""

import re
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.files import atomic_file
from pipeline.pages import table_page
from pipeline.params import Tracking
from pipeline.tracking.commit import git_tags
from pipeline.tracking.store import connect, require_answer, store_lock

if TYPE_CHECKING:
    Figure = tuple[str, float, int, int]  # name, value, milliseconds since the epoch, step

SEND_SECONDS = 5.0  # between two batches
BATCH = 1000  # figures in a call: the REST interface takes no more
PARAMS_BATCH = 100  # likewise
WAITING = 200_000  # figures that wait for a server to come back; beyond that the oldest are given up
WAITING_TABLES = 20  # likewise
SYSTEM_SECONDS = 10.0  # between two samples of the system metrics


@dataclass(frozen=True)
class Description:
    """What a run is of."""

    stage: str
    key: str  # pipeline.job.Identity.key
    params: Mapping[str, Any]  # section, dotted where it is a part of one → values, nested
    inputs: Mapping[str, str]  # path in the project → SHA-256


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
        with store_lock(root):
            self._client, experiment = connect(options, root)
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

        tags = {"stage": description.stage, "key": description.key, **git_tags(root)}
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
