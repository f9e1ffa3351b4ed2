"""What a stage is given to work with: where it reads, where it writes, and whom it tells.

A stage's outputs lie under `artifacts/<stage>/` and depend on nothing but its deps and params. What changes from
run to run (checkpoints to resume from, its state, times) lies under `runs/<stage>/`, out of the data versions' sight.
A stage that dvc.yaml repeats by `foreach` is one stage for each key, `<group>@<key>`; its outputs lie under
`artifacts/<group>/<key>/`. This module reads dvc.yaml by itself, because stages do without DVC.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

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
    """Whom a loop tells what it computes. A stage with several loops gives each of them a part of its own."""

    def part(self, name: str) -> "Meter":
        """The meter of one of several loops, which counts its own steps."""

    def resume(self, step: int, ahead: int) -> None:
        """The loop goes on from the checkpoint of `step`; the next one, or its end, comes `ahead` steps later."""

    def count(self, work: Work) -> None:
        """So much more has been computed, in a loop by one step. Raises BudgetExceededError as `keep` does."""

    def keep(self, step: int, steps: int) -> None:
        """The checkpoint of `step` out of `steps` is written. Raises BudgetExceededError if the next is too dear."""


class Unmetered:
    """Counts nothing: for loops outside of a stage."""

    def part(self, name: str) -> "Meter":
        return self

    def resume(self, step: int, ahead: int) -> None:
        pass

    def count(self, work: Work) -> None:
        pass

    def keep(self, step: int, steps: int) -> None:
        pass


UNMETERED = Unmetered()

DAG_FILE = "dvc.yaml"
PARAMS_FILE = "params.yaml"
RANKS = "distributed"  # the section of params that changes no more than rounding
MEMBER = "@"  # between a group of stages and the key of one of them, as DVC writes it


@dataclass(frozen=True)
class Job:
    """One run of one stage."""

    stage: str
    root: Path  # the project folder
    key: str  # hash of the stage's params and dependencies
    log: Log
    table: Table
    meter: Meter = UNMETERED
    digests: Mapping[str, str] = field(default_factory=dict)  # of its dependencies: path in the project → SHA-256
    leads: bool = True  # of the processes that train one model together, the one that writes

    @property
    def member(self) -> str:
        """The key of this stage in its group: `small` of `distillation@small`."""
        assert MEMBER in self.stage, f"stage {self.stage} is no member of a group"
        return self.stage.partition(MEMBER)[2]

    def output(self, name: str) -> Path:
        """Where this stage writes `name`. Write it atomically (pipeline.files).

        Outputs come last, and the rank that leads writes them: another one has done its part when it asks for this, and
        ends here.
        """
        if not self.leads:
            raise SystemExit(0)
        return artifacts(self.root, self.stage) / name

    def input(self, stage: str, name: str) -> Path:
        """Where another stage has written `name`."""
        path = artifacts(self.root, stage) / name
        if not path.exists():
            raise missing(path, stage)
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


def artifacts(root: Path, stage: str) -> Path:
    """The folder of a stage's outputs."""
    return root / "artifacts" / stage.replace(MEMBER, "/")


def read_yaml(path: Path) -> Any:
    """The content of a YAML file of the project. Raises InputError where it is not valid YAML."""
    try:
        return deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise InputError(f"{path}: nested too deeply, or holds itself") from None


@lru_cache(maxsize=4)  # a stage asks ten times for the same two files
def _parsed(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)  # the parser in C crashes where lists nest too deeply


def read_stages(root: Path) -> dict[str, Any]:
    """Stage → its definition in dvc.yaml, in order.

    Of DVC's templates the one that the recipe uses is understood: `foreach: ${section}`, a mapping in params.yaml, with
    `${key}` in the texts below `do`. Raises InputError for any other.
    """
    stages: dict[str, Any] = {}
    for name, definition in read_yaml(root / DAG_FILE)["stages"].items():
        if "foreach" in definition:
            keys = _keys(root, name, definition["foreach"])
            stages |= {f"{name}{MEMBER}{key}": _filled_in(root, definition["do"], key) for key in keys}
        else:
            stages[name] = _filled_in(root, definition, None)
    return stages


def _keys(root: Path, name: str, over: Any) -> list[str]:
    """The keys of the mapping in params.yaml that a stage is repeated over."""
    section = re.fullmatch(r"\$\{([\w.-]+)\}", over) if isinstance(over, str) else None
    if section is None:
        raise InputError(f"{root / DAG_FILE}: {name}.foreach: {over!r}: must be one section of params, as ${{a.b}}")
    keys = at(read_yaml(root / PARAMS_FILE), section[1])
    if not isinstance(keys, dict):
        raise InputError(f"{root / PARAMS_FILE}: {section[1]}: {keys!r}: must be a mapping, {name} is repeated over it")
    return [str(key) for key in keys]


def _filled_in(root: Path, part: Any, key: str | None) -> Any:
    """A definition with the member's key in place of `${key}`."""
    if isinstance(part, dict):
        return {_filled_in(root, name, key): _filled_in(root, value, key) for name, value in part.items()}
    if isinstance(part, list):
        return [_filled_in(root, value, key) for value in part]
    if not isinstance(part, str):
        return part
    filled = part if key is None else part.replace("${key}", key)
    if "${" in filled:
        raise InputError(f"{root / DAG_FILE}: {filled!r}: no template but ${{key}} below foreach is understood")
    return filled


def at(values: Any, name: str) -> Any:
    """The value at a dotted name in nested mappings, or None: `distillation.students.small`."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


@dataclass(frozen=True)
class Identity:
    """What a stage's outputs are a function of, by dvc.yaml: the content of its deps and the values of its params."""

    deps: dict[str, str]  # path in the project → SHA-256
    params: dict[str, Any]  # section, dotted where it is a part of one → its values in params.yaml

    @property
    def key(self) -> str:
        """Hash (16 hex digits): equal for equal work, which goes on from its checkpoints on any number of ranks."""
        params = {name: values for name, values in self.params.items() if name != RANKS}
        return hashlib.sha256(json.dumps([self.deps, params], sort_keys=True).encode()).hexdigest()[:16]


def require_stage(root: Path, stage: str) -> None:
    """Raises InputError where dvc.yaml has no such stage."""
    stages = read_stages(root)
    if stage not in stages:
        raise InputError(f"{root / DAG_FILE}: no stage {stage!r}; there are {', '.join(stages)}")


def require_inputs(root: Path, stage: str) -> None:
    """Raises InputError where what another stage makes for this one is not there."""
    makers = {path: other for other in read_stages(root) for path in outputs(root, other)}
    for name in read_stages(root)[stage].get("deps", []):
        if (path := root / name) in makers and not path.exists():
            raise missing(path, makers[path])


def missing(path: Path, maker: str) -> InputError:
    return InputError(f"{path}: missing; run stage {maker} first (`r1flow run --until {maker}`)")


def outputs(root: Path, stage: str) -> set[Path]:
    """Every file and folder that a stage writes, by dvc.yaml."""
    definition = read_stages(root)[stage]
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in definition.get(kind, [])]
    return {root / (entry if isinstance(entry, str) else next(iter(entry))) for entry in entries}


def identity(root: Path, stage: str) -> Identity:
    """The identity of a stage as things lie in the project folder now."""
    definition, params = read_stages(root)[stage], read_yaml(root / PARAMS_FILE)
    return Identity(
        deps={name: digest(root / name) for name in definition.get("deps", [])},
        params={name: at(params, name) for name in definition.get("params", [])},
    )
