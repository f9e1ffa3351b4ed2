"""What a stage is given to work with: where it reads, where it writes, and whom it tells.

A stage's outputs lie under `artifacts/<stage>/` and depend on nothing but its deps and params. What changes from
run to run (checkpoints to resume from, its state, times) lies under `runs/<stage>/`, out of the data versions' sight.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.errors import InputError
from pipeline.files import digest

Log = Callable[[Mapping[str, float], int], None]
"""Called with named figures and the step they belong to."""

Table = Callable[[str, int, Sequence[Mapping[str, str | float]]], None]
"""Called with a table's name, the step it belongs to, and its rows: column → what a person is to read."""

DAG_FILE = "dvc.yaml"
PARAMS_FILE = "params.yaml"


@dataclass(frozen=True)
class Job:
    """One run of one stage."""

    stage: str
    root: Path  # the project folder
    key: str  # hash of the stage's params and dependencies
    log: Log
    table: Table

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


@dataclass(frozen=True)
class Identity:
    """What a stage's outputs are a function of, by dvc.yaml: the content of its deps and the values of its params."""

    deps: dict[str, str]  # path in the project → SHA-256
    params: dict[str, Any]  # section → its values in params.yaml

    @property
    def key(self) -> str:
        """Hash (16 hex digits): equal for equal work."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def require_stage(root: Path, stage: str) -> None:
    """Raises InputError where dvc.yaml has no such stage."""
    stages = read_yaml(root / DAG_FILE)["stages"]
    if stage not in stages:
        raise InputError(f"{root / DAG_FILE}: no stage {stage!r}; there are {', '.join(stages)}")


def outputs(root: Path, stage: str) -> set[Path]:
    """Every file and folder that a stage writes, by dvc.yaml."""
    definition = read_yaml(root / DAG_FILE)["stages"][stage]
    return {root / name for kind in ("outs", "metrics", "plots") for name in definition.get(kind, [])}


def identity(root: Path, stage: str) -> Identity:
    """The identity of a stage as things lie in the project folder now."""
    definition, params = read_yaml(root / DAG_FILE)["stages"][stage], read_yaml(root / PARAMS_FILE)
    return Identity(
        deps={name: digest(root / name) for name in definition.get("deps", [])},
        params={name: params.get(name) for name in definition.get("params", [])},
    )
