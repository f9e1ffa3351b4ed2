"""Runs and registered models in MLflow. The only place that knows it."""

from pipeline.tracking.champion import Aliases, Version
from pipeline.tracking.commit import git_tags
from pipeline.tracking.reading import Recorded, keep_file, read_run
from pipeline.tracking.registry import Registered, Submission, register
from pipeline.tracking.runs import Description, Tracker, flatten
from pipeline.tracking.store import require_answer

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
    "read_run",
    "register",
    "require_answer",
]
