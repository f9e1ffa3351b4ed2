"""One run in MLflow's store: opened or continued, described, filled, closed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import atomic_file
from pipeline.params import Tracking
from pipeline.tracking.commit import git_tags
from pipeline.tracking.store import explained, opened

Figure = tuple[str, float, int, int]
"""Name, value, milliseconds since the epoch, step."""

PARAMS_BATCH = 100  # in a call: the REST interface takes no more
SYSTEM_SECONDS = 10.0  # between two samples of the system metrics


@dataclass(frozen=True)
class Description:
    """What a run is of."""

    stage: str
    key: str  # pipeline.job.Identity.key
    params: Mapping[str, Any]  # section, dotted where it is a part of one → values, nested
    inputs: Mapping[str, str]  # path in the project → SHA-256


class Run:
    """A run in MLflow's store, to be opened first. All of it is used from one thread."""

    def open(self, options: Tracking, root: Path, description: Description) -> str:
        """Continue or create the run and return its id.

        Raises InputError for a database that cannot be used, ConnectionError for a store that refuses.
        """
        self._store = options, root
        self._memo = root / "runs" / description.stage / description.key / "mlflow_run"
        self._client, experiment = opened(options, root)
        with explained(options, root, opening=True):
            self._id = self._continued() or self._created(experiment, root, description)
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            self._id, SYSTEM_SECONDS, resume_logging=True, tracking_uri=self._client.tracking_uri
        )
        self._monitor.start()
        return self._id

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

    def send(self, figures: list[Figure]) -> None:
        """Raises ConnectionError where the store does not take them."""
        from mlflow.entities import Metric

        with explained(*self._store):
            self._client.log_batch(self._id, metrics=[Metric(*figure) for figure in figures])

    def keep(self, path: str, content: str) -> None:
        """Keep a text among the artifacts. Raises OSError where their store does not take it."""
        with explained(*self._store):
            self._client.log_text(self._id, content, path)

    def close(self, status: str) -> None:
        """Raises ConnectionError where the store does not answer."""
        with explained(*self._store):
            self._monitor.collect_metrics()  # a last sample, so that a short stage has one too
            self._monitor.publish_metrics(self._monitor.aggregate_metrics())
            self._monitor.finish()
            self._client.set_terminated(self._id, status)
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
