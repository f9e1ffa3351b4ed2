"""What a stage is given to work with: where it reads, where it writes, and whom it tells.

A stage's outputs lie under `artifacts/<stage>/` and depend on nothing but its deps and params. What changes from
run to run (checkpoints to resume from, its state, times) lies under `runs/<stage>/`, out of the data versions' sight.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ruamel.yaml import YAML

from pipeline.errors import InputError
from pipeline.files import digest

Log = Callable[[Mapping[str, float], int], None]
"""Called with named figures and the step they belong to."""

Table = Callable[[str, int, Sequence[Mapping[str, str | float]]], None]
"""Called with a table's name, the step it belongs to, and its rows: column → what a person is to read."""


@dataclass(frozen=True, slots=True)
class Work:
    """What was computed, as far as it is the same on any machine."""

    trained_tokens: int = 0  # put through a model forward and backward, prompts included
    generated_tokens: int = 0
    flops: int = 0  # of the textbook's arithmetic (pipeline.model.flops), forward, backward and generation together

    @property
    def tokens(self) -> int:
        return self.trained_tokens + self.generated_tokens

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.trained_tokens + other.trained_tokens,
            self.generated_tokens + other.generated_tokens,
            self.flops + other.flops,
        )


class Meter(Protocol):
    """Whom a loop tells what it computes."""

    def resume(self, step: int, ahead: int) -> None:
        """The loop goes on from the checkpoint of `step`; the next one, or its end, comes `ahead` steps later."""

    def count(self, work: Work) -> None:
        """So much more has been computed, in a loop by one step. Raises BudgetExceededError as `keep` does."""

    def keep(self, step: int, steps: int) -> None:
        """The checkpoint of `step` out of `steps` is written. Raises BudgetExceededError if the next is too dear."""


class Unmetered:
    """Counts nothing: for loops outside of a stage."""

    def resume(self, step: int, ahead: int) -> None:
        pass

    def count(self, work: Work) -> None:
        pass

    def keep(self, step: int, steps: int) -> None:
        pass


UNMETERED = Unmetered()

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
    meter: Meter = UNMETERED

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


def identity(root: Path, stage: str) -> Identity:
    """The identity of a stage as things lie in the project folder now."""
    definition, params = read_yaml(root / DAG_FILE)["stages"][stage], read_yaml(root / PARAMS_FILE)
    return Identity(
        deps={name: digest(root / name) for name in definition.get("deps", [])},
        params={name: params.get(name) for name in definition.get("params", [])},
    )
