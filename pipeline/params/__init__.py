"""Every option of the recipe: params.yaml as typed, frozen sections, one per stage.

An unknown key, a wrong type or an impossible combination is refused before anything runs, in one message that names
file, section, key, value and rule. Values are never converted: `"3"` is not a number. YAML is read as version 1.2, as
DVC does, so `3e-6` is one.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import InputError
from pipeline.params.data import (
    Curation,
    Decontamination,
    DifficultyBand,
    FieldMap,
    FileSource,
    Gates,
    GeneratedSource,
    GymSource,
    HubSource,
    Limits,
    NearDuplicates,
    RowSource,
    Source,
)
from pipeline.params.rl import GRPO, Health, PolicyLoss, ReasoningRL, Rewards, Weights
from pipeline.params.section import Count, Positive, Section
from pipeline.params.students import Distillation, OnPolicy, Student
from pipeline.params.training import Base, Checkpoint, ColdStart, Corpus, Optimisation, Pretrain, Training

__all__ = [
    "GRPO",
    "Base",
    "Checkpoint",
    "ColdStart",
    "Corpus",
    "Curation",
    "Decontamination",
    "DifficultyBand",
    "Distillation",
    "Evaluation",
    "FieldMap",
    "FileSource",
    "Gates",
    "GeneratedSource",
    "GymSource",
    "Health",
    "HubSource",
    "Limits",
    "Machine",
    "NearDuplicates",
    "OnPolicy",
    "Optimisation",
    "Params",
    "PolicyLoss",
    "Pretrain",
    "ReasoningRL",
    "Rewards",
    "RowSource",
    "Sampling",
    "Section",
    "Source",
    "Student",
    "Tracking",
    "Training",
    "Weights",
    "load_params",
]


class Sampling(Section):
    """How a completion is drawn; the defaults are R1's sampler for evaluation (DeepSeek-R1, section 3)."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.6  # 0: the likeliest token, nothing is drawn
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95  # smallest set of likeliest tokens with this mass; 1: all
    top_k: Count | None = None  # only the k likeliest tokens; None: all
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0  # at least this share of the likeliest token's probability
    stop: list[Annotated[str, Field(min_length=1)]] = []  # strings that end a completion; they do not belong to it
    max_new_tokens: Count = 256

    @model_validator(mode="after")
    def _cuts_need_a_draw(self) -> "Sampling":
        for key, off in (("top_k", None), ("min_p", 0.0)):
            if self.temperature == 0 and getattr(self, key) != off:
                raise ValueError(f"{key}: {getattr(self, key)} has no effect at temperature 0; leave it out")
        return self


class Evaluation(Section):
    problems: Count
    samples: Count  # per problem; pass@1 is their mean
    sampling: Sampling = Sampling()


# ---------------------------------------------------------------- what no result depends on


class Tracking(Section):
    # A server or a database, as MLflow writes it; None: SQLite under runs/mlflow
    uri: Annotated[str, Field(pattern=r"^(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?)://")] | None = None
    experiment: str = "r1flow"


class Machine(Section):
    """Where things run. Not part of any stage's identity."""

    threads: Count | None = None  # None: one per core
    stage_timeout_hours: Positive = 24.0
    retries: Annotated[int, Field(ge=0)] = 1


class Params(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    held_out: Annotated[float, Field(gt=0, lt=1)]  # share of the problems that no training stage may see
    curation: Curation
    base: Base
    cold_start: ColdStart
    reasoning_rl: ReasoningRL
    distillation: Distillation
    evaluation: Evaluation
    tracking: Tracking = Tracking()
    machine: Machine = Machine()


def load_params(path: Path) -> Params:
    """Read and check a params file. Raises InputError with one line per broken rule."""
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {_explain(detail)}" for detail in error.errors())) from None


def _explain(detail: Any) -> str:
    """One broken rule as `section.key: value: rule`."""
    key = ".".join(str(part) for part in detail["loc"]) or "document"
    value = repr(detail["input"])
    return f"{key}: {value if len(value) <= 80 else value[:77] + '...'}: {detail['msg']}"
