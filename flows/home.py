"""Where a flow run works, and where what outlives it is kept."""

import os
from pathlib import Path

from pipeline.errors import InputError
from pipeline.job import project_root

PROJECT = "R1FLOW_PROJECT"


def working_folder() -> Path:
    """The project at the run's commit: on a worker the folder that flows.checkout has made for this run."""
    return project_root(Path.cwd())


def home() -> Path:
    """The worker's clone, which stays: the registry, the ledger and copies of releases lie in its runs/ where params
    name no server or store for them. Outside of workers it is the project itself."""
    named = os.environ.get(PROJECT)
    if named is None:
        return working_folder()
    if not Path(named).is_dir():
        raise InputError(f"{PROJECT}: {named}: no such folder")
    return Path(named).resolve()
