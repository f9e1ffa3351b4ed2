"""A study: one question, put to several arms, each of which is the recipe with a few params of its own.

infra/profiles/studies/NAME.yaml holds it. An arm's `params` replace values of the project's params.yaml, each named by
its dotted path as `dvc exp run -S` names it. A value that is replaced goes whole, mappings too: of a sparse model's
config nothing is left under the dense one's. Free of torch, as the flow reads it.
"""

import copy
import tempfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML

from pipeline.errors import InputError
from pipeline.job import DAG_FILE, PARAMS_FILE, artifacts, outputs, read_yaml, require_stage
from pipeline.params import Section, load_params
from pipeline.params.section import broken_rules

STUDIES = Path("infra") / "profiles" / "studies"
COMMON = ("seed", "held_out", "evaluation", "tracking", "machine")
"""What all arms have in common: the study's own seeds, the same held-out problems, the same way of asking."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Arm(Section):
    model: Annotated[str, Field(pattern=r"^[a-z_]+(@[a-z0-9][a-z0-9_-]*)?$")]  # the stage whose model it is
    params: Annotated[dict[str, Any], Field(default_factory=dict)]  # dotted path → what takes its place

    @model_validator(mode="after")
    def _leaves_what_is_common(self) -> "Arm":
        for path in self.params:
            if path.partition(".")[0] in COMMON:
                raise ValueError(f"params.{path}: all arms have {', '.join(COMMON)} in common")
        return self


class Study(Section):
    question: Annotated[str, Field(min_length=1)]
    control: Name  # the arm that the others are compared with
    seeds: Annotated[list[Seed], Field(min_length=1)]  # every arm runs once with each
    arms: Annotated[dict[Name, Arm], Field(min_length=2)]

    @model_validator(mode="after")
    def _fits_together(self) -> "Study":
        if self.control not in self.arms:
            raise ValueError(f"control: {self.control!r} is not one of the arms {', '.join(self.arms)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds}: must differ")
        return self


def load_study(root: Path, name: str) -> Study:
    """The study of this name in the project at `root`. Raises InputError with one line per broken rule."""
    path = study_file(root, name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise InputError(f"{path}: no such study; there are {known or 'none'}")
    try:
        return Study.model_validate(read_yaml(path))
    except ValidationError as error:
        raise broken_rules(path, error) from None


def study_file(root: Path, name: str) -> Path:
    return root / STUDIES / f"{name}.yaml"


def results_folder(root: Path, name: str) -> Path:
    return root / "runs" / "studies" / name


def workspace(root: Path, name: str, arm: str, seed: int) -> Path:
    """The folder in which one arm runs with one seed: a small project of its own."""
    return results_folder(root, name) / f"{arm}-seed-{seed}"


def arm_params(root: Path, name: str, study: Study, arm: str, seed: int) -> dict[str, Any]:
    """The project's params with those of an arm and the seed in place.

    Raises InputError for a key that the recipe does not have and for a value that it refuses.
    """
    document = copy.deepcopy(read_yaml(root / PARAMS_FILE))
    where = f"{study_file(root, name)}: arms.{arm}.params"
    for path, value in study.arms[arm].params.items():
        *sections, last = path.split(".")
        section = document
        for part in sections:
            section = section.setdefault(part, {}) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise InputError(f"{where}.{path}: {'.'.join(sections)} is no section of {PARAMS_FILE}")
        section[last] = copy.deepcopy(value)
    document["seed"] = seed
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / PARAMS_FILE
        write_yaml(document, merged)
        try:
            load_params(merged)
        except InputError as error:  # its lines name the merged file, which nobody has written
            raise InputError(str(error).replace(str(merged), where)) from None
    return document


def require_model(folder: Path, stage: str) -> None:
    """Raises InputError where the stages of the workspace `folder` make no such model."""
    require_stage(folder, stage)
    if model_folder(folder, stage) not in outputs(folder, stage):
        raise InputError(f"{folder / DAG_FILE}: {stage} has no output {model_folder(Path(), stage)}: it makes no model")


def model_folder(folder: Path, stage: str) -> Path:
    return artifacts(folder, stage) / "model"


def write_yaml(document: Any, path: Path) -> None:
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    with path.open("w", encoding="utf-8") as file:
        writer.dump(document, file)
