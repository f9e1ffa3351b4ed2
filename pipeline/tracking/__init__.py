"""Runs and registered models in MLflow. The only place that knows it."""

from pipeline.tracking.champion import Aliases, Version
from pipeline.tracking.commit import git_tags
from pipeline.tracking.reading import Recorded, keep_file, read_run
from pipeline.tracking.recorder import recorder
from pipeline.tracking.registry import Registered, Submission, register
from pipeline.tracking.run import Description, flatten
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import prepare, require_store, store_file

__all__ = [
    "Aliases",
    "Description",
    "Recorded",
    "Registered",
    "Submission",
    "Tracker",
    "Version",
    "flatten",
    "git_tags",
    "keep_file",
    "prepare",
    "read_run",
    "recorder",
    "register",
    "require_store",
    "store_file",
]
