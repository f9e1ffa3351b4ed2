"""Fixtures of several test folders."""

import fcntl
import gc
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from flows.prepare import UPGRADE
from pipeline.process import spin_briefly
from pipeline.tracking import recorder
from tests.project import FlowProject

spin_briefly()  # before any test imports torch
# That a machine is busy otherwise is no fault of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
gc.disable()  # while the tests are imported, as `importing` of pipeline/process.py does


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several test processes each takes a file at a time: slow ones first, so that all end at about one time.

    By their names, not by their folders: those of a folder, as of faults, would all wait at one time and leave the
    cores alone.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.name, str(item.path)))


def silenced() -> set[str]:
    """Loggers of ours that a library's logging set-up has switched off."""
    logging.getLogger("pipeline")  # one that is there already
    ours = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("pipeline", "flows")]
    return {name for name in ours if logging.getLogger(name).disabled}


@pytest.fixture(autouse=True)
def loggers_stay_on() -> Iterator[None]:
    """Who switches our loggers off is found there, not by some later test's empty caplog."""
    before = silenced()
    yield
    assert silenced() <= before


@pytest.fixture(scope="session", autouse=True)
def tracking_process() -> Iterator[None]:
    """One MLflow for all tests of this process and what they start, as a flow has one for all its stages."""
    with recorder():
        yield


@pytest.fixture
def flow_project(tmp_path: Path) -> FlowProject:
    return FlowProject(tmp_path)


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's database before anything was kept in it, made once for all test processes: it takes seconds."""
    folder = tmp_path_factory.getbasetemp()
    home = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "prefect-database"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "made").exists():
            subprocess.run([sys.executable, *UPGRADE], env={**os.environ, "PREFECT_HOME": str(home)}, check=True)
            (home / "made").touch()
    return home / "prefect.db"


@pytest.fixture(scope="session")
def prefect_home(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's folder for all flows that have a server of their own."""
    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(prefect_database, home)
    return home
