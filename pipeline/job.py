"""What a stage is given to work with: where it reads, where it writes, and whom it tells.

A stage's outputs lie under `artifacts/<stage>/` and depend on nothing but its deps and params. What changes from
run to run (checkpoints to resume from, its state, times) lies under `runs/<stage>/`, out of the data versions' sight.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.errors import InputError
from pipeline.files import digest

Log = Callable[[Mapping[str, float], int], None]
"""Called with named figures and the step they belong to."""

DAG_FILE = "dvc.yaml"
PARAMS_FILE = "params.yaml"


@dataclass(frozen=True)
class Job:
    """One run of one stage."""

    stage: str
    root: Path  # the project folder
    key: str  # hash of the stage's params and dependencies
    log: Log

    def output(self, name: str) -> Path:
        """Where this stage writes `name`. Write it atomically (pipeline.files)."""
        return self.root / "artifacts" / self.stage / name

    def input(self, stage: str, name: str) -> Path:
        """Where another stage has written `name`."""
        path = self.root / "artifacts" / stage / name
        if not path.exists():
            raise InputError(f"{path}: missing; run stage {stage} first (`r1flow run --until {stage}`)")
        return path

    @property
    def runs(self) -> Path:
        """This stage's untracked folder, whatever its params."""
        return self.root / "runs" / self.stage

    @property
    def scratch(self) -> Path:
        """The untracked folder of exactly this work: what lies here may be resumed from."""
        return self.runs / self.key


def project_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds dvc.yaml and params.yaml."""
    for folder in (start, *start.parents):
        if (folder / DAG_FILE).is_file() and (folder / PARAMS_FILE).is_file():
            return folder
    raise InputError(f"{start}: no {DAG_FILE} and {PARAMS_FILE} here or in a folder above: not an r1flow project")


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def stage_key(root: Path, stage: str) -> str:
    """Hash (16 hex digits) of what dvc.yaml says a stage depends on: the content of its deps, its params."""
    definition = read_yaml(root / DAG_FILE)["stages"][stage]
    params = read_yaml(root / PARAMS_FILE)
    identity = {
        "deps": {name: digest(root / name) for name in definition.get("deps", [])},
        "params": {name: params.get(name) for name in definition.get("params", [])},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
