"""Every option of the recipe: params.yaml as typed, frozen sections, one per stage.

An unknown key, a wrong type or an impossible combination is refused before anything runs, in one message that names
file, section, key, value and rule. Values are never converted: `"3"` is not a number. YAML is read as version 1.2, as
DVC does, so `3e-6` is one.
"""

import re
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
from pipeline.params.general import ExternalJudge, GeneralRL, Monitor, PairTraining, Preference, PreferenceReward
from pipeline.params.generation import RejectionSampling, Sampling, Selection
from pipeline.params.machine import Budget, Machine, Prices
from pipeline.params.measuring import Champion, Evaluation, Floor, ModelGates, StudentFloor
from pipeline.params.operation import Approval, Operation
from pipeline.params.ranks import Distributed
from pipeline.params.release import Deployment, Parity
from pipeline.params.rl import GRPO, RL, Health, PolicyLoss, ReasoningRL, Rewards, Weights
from pipeline.params.section import Section, broken_rules
from pipeline.params.serving import Follow, Serving
from pipeline.params.sizing import Plan, Sizing, Target, Variant
from pipeline.params.students import Distillation, OnPolicy, Student
from pipeline.params.training import (
    Adapter,
    Base,
    BytePairTokens,
    CharacterTokens,
    Checkpoint,
    ColdStart,
    Corpus,
    CuratedCorpus,
    GeneralSFT,
    GeneratedCorpus,
    Optimisation,
    Pretrain,
    Tokens,
    Training,
)
from pipeline.params.workers import MEMBER, Workers

__all__ = [
    "GRPO",
    "RL",
    "Adapter",
    "Approval",
    "Base",
    "Budget",
    "BytePairTokens",
    "Champion",
    "CharacterTokens",
    "Checkpoint",
    "ColdStart",
    "Corpus",
    "CuratedCorpus",
    "Curation",
    "Decontamination",
    "Deployment",
    "DifficultyBand",
    "Distillation",
    "Distributed",
    "Evaluation",
    "ExternalJudge",
    "FieldMap",
    "FileSource",
    "Floor",
    "Follow",
    "Gates",
    "GeneralRL",
    "GeneralSFT",
    "GeneratedCorpus",
    "GeneratedSource",
    "GymSource",
    "Health",
    "HubSource",
    "Limits",
    "Machine",
    "ModelGates",
    "Monitor",
    "NearDuplicates",
    "OnPolicy",
    "Operation",
    "Optimisation",
    "PairTraining",
    "Params",
    "Parity",
    "Plan",
    "PolicyLoss",
    "Preference",
    "PreferenceReward",
    "Pretrain",
    "Prices",
    "ReasoningRL",
    "RejectionSampling",
    "Rewards",
    "RowSource",
    "Sampling",
    "Section",
    "Selection",
    "Serving",
    "Sizing",
    "Source",
    "Student",
    "StudentFloor",
    "Target",
    "Tokens",
    "Tracking",
    "Training",
    "Variant",
    "Weights",
    "Workers",
    "load_params",
]


# ---------------------------------------------------------------- what no result depends on


class Tracking(Section):
    # A server or a database, as MLflow writes it; None: SQLite under runs/mlflow
    uri: Annotated[str, Field(pattern=r"^(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?)://")] | None = None
    experiment: str = "r1flow"


class Params(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    held_out: Annotated[float, Field(gt=0, lt=1)]  # share of the problems that no training stage may see
    curation: Curation
    base: Base
    cold_start: ColdStart
    reasoning_rl: ReasoningRL
    rejection_sampling: RejectionSampling
    general_sft: GeneralSFT
    preference: Preference
    general_rl: GeneralRL
    distillation: Distillation
    evaluation: Evaluation
    deployment: Deployment
    distributed: Distributed = Distributed()
    tracking: Tracking = Tracking()
    operation: Operation = Operation()
    machine: Machine = Machine()
    workers: Workers | None = None  # None: everything runs where the recipe is started

    @model_validator(mode="after")
    def _workers_run_stages_that_are_there(self) -> "Params":
        if self.workers is None:
            return self
        # What a stage reads has to be there; what no result depends on has defaults.
        stages = {name for name, field in type(self).model_fields.items() if field.is_required()} - {"seed", "held_out"}
        stages |= {f"distillation{MEMBER}{name}" for name in self.distillation.students}
        if unknown := [stage for stage in self.workers.pools if stage not in stages]:
            raise ValueError(f"workers.pools: no stage {unknown[0]!r}; there are {', '.join(sorted(stages))}")
        if self.tracking.uri is None:
            raise ValueError("workers: needs tracking.uri, which all machines reach: the default is a local file")
        store = self.machine.store
        if store is not None and not store.startswith(("s3://", "/")):
            raise ValueError(
                f"workers: machine.store: {store!r}: must be s3://… or an absolute path: machines share it"
            )
        return self

    @model_validator(mode="after")
    def _variants_are_made_of_what_is_there(self) -> "Params":
        before, variants = ["general_rl", *self.distillation.students], self.deployment.variants
        for name, variant in variants.items():
            key = f"deployment.variants.{name}"
            if name in before:
                raise ValueError(f"{key}: must not be called as a release is")
            if variant.of not in before:
                raise ValueError(f"{key}.of: {variant.of!r}: must be one of {', '.join(before)}")
            if variant.experts is not None and variant.of in variants and variants[variant.of].int8:
                raise ValueError(f"{key}.experts: {variant.of} is packed: cut the experts first, pack then")
            before.append(name)
        return self

    @model_validator(mode="after")
    def _adapted_weights_stay_whole(self) -> "Params":
        students = {f"distillation.students.{name}": student for name, student in self.distillation.students.items()}
        stages = ("cold_start", "reasoning_rl", "general_sft", "preference", "general_rl")
        for name, section in {**{stage: getattr(self, stage) for stage in stages}, **students}.items():
            if section.train.adapter is not None and self.distributed.zero == 3:
                raise ValueError(f"distributed.zero: must be below 3 where {name}.train has an adapter")
        return self


def load_params(path: Path) -> Params:
    """Read and check a params file. Raises InputError with one line per broken rule."""
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        _refuse_credentials(path, document)
        return Params.model_validate(_in_order(document))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise InputError(f"{path}: nested too deeply, or holds itself") from None
    except ValidationError as error:
        raise broken_rules(path, error) from None


def _in_order(part: Any) -> Any:
    """The same with the keys of mappings sorted: to DVC their order says nothing, so no output may depend on it."""
    match part:
        case dict():
            return {key: _in_order(part[key]) for key in sorted(part, key=str)}
        case list():
            return [_in_order(entry) for entry in part]
        case _:
            return part


def _refuse_credentials(path: Path, part: Any, key: str = "") -> None:
    """Params go into records, so no address of a store may hold credentials. The message does not repeat them."""
    if isinstance(part, dict | list):
        for name, value in part.items() if isinstance(part, dict) else enumerate(part):
            _refuse_credentials(path, value, f"{key}.{name}".lstrip("."))
    elif isinstance(part, str) and re.match(r"s3://[^/]*@", part):
        raise InputError(f"{path}: {key}: an address s3://… must not hold credentials: boto3's own places have them")
