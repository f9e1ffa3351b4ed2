"""MLflow's store: where it is, how it is opened, whether it answers, and what it refuses, in one line.

The default store is SQLite under runs/mlflow. Two processes that meet a new store at once would both migrate its
database, so it is opened under a file lock. A kill in the middle of that would leave a database that MLflow refuses
for ever, so a new one gets its name when it is done.
"""

import fcntl
import http.client
import multiprocessing
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.pool import ThreadPool
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
    except (OSError, ValueError, http.client.HTTPException) as error:  # no address, or another protocol's
        raise InputError(f"tracking.uri: {uri}: no tracking server answers: {error}") from error


def store_file(root: Path) -> Path:
    return root / "runs" / "mlflow" / "mlflow.db"


def store_uri(options: Tracking, root: Path) -> str:
    """The store's address, as MLflow writes it."""
    return options.uri or f"sqlite:///{store_file(root)}"


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


@contextmanager
def explained(options: Tracking, root: Path, *, opening: bool = False) -> Iterator[None]:
    """What MLflow refuses in this block as one line with the store's address.

    It is a ConnectionError, which may pass; InputError where MLflow says of a database while `opening` it that it is
    damaged, of another version or out of reach.
    """
    load()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = store_uri(options, root)
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        final = opening and not uri.startswith("http") and not isinstance(error, OSError)
        kind = InputError if final else ConnectionError
        reason = str(error).partition("\n")[0]  # below it stands the SQL, or the server's page
        raise kind(f"tracking.uri: {uri}: MLflow cannot use it: {reason}") from error


def opened(options: Tracking, root: Path) -> "tuple[MlflowClient, str]":
    """As `connect`, while no other process of this machine does the same.

    Raises InputError where no server answers or a database cannot be used, ConnectionError where a server refuses.
    """
    if options.uri is not None:
        require_answer(options.uri)
    with explained(options, root, opening=True), store_lock(root):
        client, experiment = connect(options, root)
    from mlflow import set_tracking_uri

    set_tracking_uri(client.tracking_uri)  # SQL stores look a version's `models:/…` up in the global one
    return client, experiment


def require_store(options: Tracking, root: Path, seconds: float) -> None:
    """Ask the store for the experiment, and make nothing. Raises as `opened`, ConnectionError after `seconds`."""
    if options.uri is not None:
        require_answer(options.uri)
    load()  # takes its time, and is not the store's fault
    from mlflow import MlflowClient

    def ask() -> None:
        MlflowClient(store_uri(options, root)).get_experiment_by_name(options.experiment)

    with explained(options, root, opening=True), ThreadPool(1) as aside:  # MLflow tries a database for minutes
        try:
            aside.apply_async(ask).get(seconds)
        except multiprocessing.TimeoutError:
            raise TimeoutError(f"no answer within {seconds:.0f} s") from None


def connect(options: Tracking, root: Path) -> "tuple[MlflowClient, str]":
    """A client of the store and the id of the experiment, both made where they are missing."""
    load()
    from mlflow import MlflowClient

    if options.uri is None and not store_file(root).exists():
        _make_database(store_file(root))
    client = MlflowClient(store_uri(options, root))
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
