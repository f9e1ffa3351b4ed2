"""MLflow's store: where it is, how it is opened, and whether it answers.

The default store is SQLite under runs/mlflow. Two processes that meet a new store at once would both migrate its
database, so it is opened under a file lock. A kill in the middle of that would leave a database that MLflow refuses
for ever, so a new one gets its name when it is done.
"""

import fcntl
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.params import Tracking
from pipeline.process import importing

if TYPE_CHECKING:
    from mlflow import MlflowClient

ANSWER_SECONDS = 5.0
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # a pickle can run code; nothing here needs one
}


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


def store_file(root: Path) -> Path:
    return root / "runs" / "mlflow" / "mlflow.db"


@contextmanager
def store_lock(root: Path, name: str = "lock") -> Iterator[None]:
    """Held by one process on this machine at a time; `name` tells what for."""
    folder = store_file(root).parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def load() -> None:
    """Import MLflow, which takes seconds, with our settings."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with importing():
        import mlflow.store.tracking.sqlalchemy_store
        import mlflow.system_metrics.system_metrics_monitor  # noqa: F401


def prepare(root: Path) -> None:
    """Make the default store, which takes seconds the first time."""
    with store_lock(root):
        connect(Tracking(), root)


def connect(options: Tracking, root: Path) -> "tuple[MlflowClient, str]":
    """A client of the store and the id of the experiment, both made where they are missing."""
    load()
    from mlflow import MlflowClient

    if options.uri is None and not store_file(root).exists():
        _make_database(store_file(root))
    client = MlflowClient(options.uri or f"sqlite:///{store_file(root)}")
    experiment = client.get_experiment_by_name(options.experiment)
    if experiment is not None:
        return client, experiment.experiment_id
    artifacts = (store_file(root).parent / "artifacts").as_uri() if options.uri is None else None
    return client, client.create_experiment(options.experiment, artifact_location=artifacts)


def _make_database(path: Path) -> None:
    """MLflow's database, whole or not there."""
    from mlflow import MlflowClient

    unfinished = path.with_name(f".{path.name}.new")
    for file in path.parent.glob(f"{unfinished.name}*"):  # with what SQLite keeps beside it
        file.unlink()
    MlflowClient(f"sqlite:///{unfinished}").search_experiments(max_results=1)
    unfinished.replace(path)
