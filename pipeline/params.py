"""Every option of the recipe: params.yaml as typed, frozen sections, one per stage.

An unknown key, a wrong type or an impossible combination is refused before anything runs, in one message that names
file, section, key, value and rule. Values are never converted: `"3"` is not a number. YAML is read as version 1.2, as
DVC does, so `3e-6` is one.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Language = Annotated[str, Field(pattern="^[a-z]{2}$")]  # ISO 639-1
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# ---------------------------------------------------------------- curation


class GeneratedSource(Section):
    """Arithmetic and string problems with worked traces, made here from a seed."""

    kind: Literal["generated"]
    name: Name
    problems: Count
    families: dict[str, Positive]  # family → weight in the mix


class FieldMap(Section):
    """Which column of a row holds what, and what to take out of it by regular expressions."""

    prompt: str = "prompt"
    gold: str = "gold"
    answer_pattern: str | None = None  # its one group is the gold; what stands before the match is the thinking
    thinking: str | None = None
    thinking_strip: str | None = None  # what it matches is taken out of the thinking
    difficulty: str | None = None
    difficulty_count: str | None = None  # difficulty = how often it occurs in the `gold` column
    verifier: str | None = None
    task: str | None = None
    language: str | None = None

    @model_validator(mode="after")
    def _patterns_compile(self) -> "FieldMap":
        for key, groups in (("answer_pattern", 1), ("thinking_strip", None), ("difficulty_count", None)):
            if (pattern := getattr(self, key)) is None:
                continue
            try:
                found = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{key}: {pattern!r} is no regular expression: {error}") from None
            if groups is not None and found != groups:
                raise ValueError(f"{key}: {pattern!r} must have exactly one group, has {found}")
        return self

    @model_validator(mode="after")
    def _one_origin_each(self) -> "FieldMap":
        if self.difficulty and self.difficulty_count:
            raise ValueError("difficulty and difficulty_count: give one of them")
        if self.thinking and self.answer_pattern:
            raise ValueError("thinking and answer_pattern: the pattern gives a thinking already; give one of them")
        return self


class RowSource(Section):
    """Options of every source whose rows come from somewhere else."""

    name: Name
    task: Name  # where `fields.task` is not given
    language: Language | None = None  # of all rows, where `fields.language` is not given; None: detected
    verifier: Literal["exact", "numeric", "math", "code"] = "math"
    split: Literal["train", "evaluation"] | None = None  # None: by content hash, as `held_out` says
    fields: FieldMap = FieldMap()


class FileSource(RowSource):
    """jsonl or parquet files by path, glob or `s3://…`."""

    kind: Literal["jsonl", "parquet"]
    path: str
    digest: Digest | None = None  # of the content, as `r1flow digest` prints it; curation does not run without


class HubSource(RowSource):
    """A data set of the Hugging Face hub, by id and revision, or a local folder in that format."""

    kind: Literal["hub"]
    dataset: str
    revision: str | None = None  # the commit, where it is an id
    digest: Digest | None = None  # of the content, where it is a folder
    subset: str | None = None
    rows: str = "train"  # the data set's own split to read


class GymSource(Section):
    """A data set of the `reasoning-gym` package (an optional extra)."""

    kind: Literal["reasoning_gym"]
    name: Name
    dataset: str
    problems: Count
    verifier: Literal["exact", "numeric", "math"] = "exact"
    options: dict[str, Any] = {}


Source = Annotated[GeneratedSource | FileSource | HubSource | GymSource, Field(discriminator="kind")]


class Limits(Section):
    """Bounds on what one row may be."""

    line_bytes: Count = 1_000_000
    prompt_chars: Count = 4_000
    gold_chars: Count = 1_000
    thinking_chars: Count = 32_000


class NearDuplicates(Section):
    """MinHash over word shingles. Prompts that differ in their numbers are never near duplicates."""

    similarity: Annotated[float, Field(gt=0, le=1)] = 0.85
    shingle_words: Count = 3
    permutations: Annotated[int, Field(ge=16, multiple_of=4)] = 64  # more: a better estimate of the similarity


class Decontamination(Section):
    """n-gram overlap with the evaluation split, in words; numbers count as words, and all of the prompt's must be."""

    ngram_words: Count = 8
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5  # of an evaluation prompt's n-grams found in the row
    phrase_rows: Count = 10  # an n-gram that more rows have (of up to 50,000 looked at) is a phrase and does not count


class DifficultyBand(Section):
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "DifficultyBand":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Gates(Section):
    """What the quality gates demand of the accepted data."""

    min_problems: Count = 100
    max_quarantined: Share = 0.2
    min_task_share: Share = 0.01
    max_task_share: Share = 1.0
    max_length_drift: Positive = 0.25  # relative change of the mean prompt length against the last accepted set
    max_task_drift: Share = 0.2  # total variation distance between the task mixes

    @model_validator(mode="after")
    def _ordered(self) -> "Gates":
        if self.min_task_share > self.max_task_share:
            raise ValueError(f"min_task_share {self.min_task_share} is above max_task_share {self.max_task_share}")
        return self


class Curation(Section):
    sources: Annotated[list[Source], Field(min_length=1)]
    languages: Annotated[list[Language], Field(min_length=1)] = ["en"]
    limits: Limits = Limits()
    near_duplicates: NearDuplicates = NearDuplicates()
    decontamination: Decontamination = Decontamination()
    difficulty: DifficultyBand = DifficultyBand()
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _names_differ(self) -> "Curation":
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"sources: names must differ, got {names}")
        return self


# ---------------------------------------------------------------- training


class Optimisation(Section):
    """Options of every loop that trains: the optimiser's, and how its steps are cut and kept."""

    steps: Count
    micro_batch_tokens: Count = 16_384  # at most at once through the model; bounds memory, does not change the result
    learning_rate: Positive
    warmup: Share = 0.05  # of the steps
    final_learning_rate: Share = 0.1  # of `learning_rate`, reached by a cosine
    weight_decay: NonNegative = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.95
    gradient_clip: Positive = 1.0
    balance_rate: NonNegative = 0.001  # update of the routers' balancing bias, per update of the weights
    balance_loss: NonNegative = 1e-4
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: Count = 100  # steps


class Training(Optimisation):
    """Options of the supervised training loop."""

    tokens_per_step: Count  # of all kinds, on average; the loss is normalised by those that count


class Corpus(Section):
    """The text that a base model is trained on from scratch: generated problems with terse and with worked answers."""

    documents: Count
    worked: Share  # of the documents show the work; the others only the answer
    families: dict[str, Positive]


class Pretrain(Section):
    kind: Literal["pretrain"]
    model: dict[str, Any]  # a Hugging Face config.json; the vocabulary comes from the tokenizer
    corpus: Corpus
    train: Training


class Checkpoint(Section):
    kind: Literal["checkpoint"]
    source: str  # a folder, s3://bucket/prefix, or a hub id
    digest: Digest  # over the checkpoint's files, as `r1flow digest` prints it
    revision: str | None = None


Base = Annotated[Pretrain | Checkpoint, Field(discriminator="kind")]


class ColdStart(Section):
    examples: Count  # worked traces to train on; few and good
    train: Training


# ---------------------------------------------------------------- rewards


class Weights(Section):
    """Of the parts of a rule reward. R1's: accuracy and format alike, language consistency added as the share it is."""

    accuracy: NonNegative = 1.0  # 1 for a right answer
    format: NonNegative = 1.0  # 1 for a well-formed completion
    language: NonNegative = 1.0  # share of the thinking's words in `language`
    length: NonNegative = 0.0  # DAPO's soft overlong punishment: from 0 down to −1
    repetition: NonNegative = 0.0  # from 0 down to −1

    @model_validator(mode="after")
    def _something_counts(self) -> "Weights":
        if not any(self.model_dump().values()):
            raise ValueError("at least one weight must be above 0")
        return self


class Rewards(Section):
    """The rule reward of a completion: the sum of its parts by their weights. A part of weight 0 is not computed."""

    weights: Weights = Weights()
    language: Language = "en"
    overlong_buffer: Count = 64  # tokens below the limit in which a completion is punished for its length
    repetition_ngram: Annotated[int, Field(ge=2)] = 10  # units: words, numbers, signs


# ---------------------------------------------------------------- reinforcement learning


class Health(Section):
    """When a run of reinforcement learning counts as sick, and how far it is helped before it is stopped.

    The bounds are on the figures that each step logs; pipeline/rl/conditions.py says what each of them finds. A bound
    is crossed only by what lies beyond it, so the ends of a share's range (and 0 for `min_entropy`) switch a condition
    off.
    """

    max_skips: Annotated[int, Field(ge=0)] = 3  # steps left out in a row; more are no accident of the data
    max_rollbacks: Annotated[int, Field(ge=0)] = 2  # per run; what comes a third time comes with any data
    patience: Count = 10  # steps in a row that a slow decline must last: single steps of few prompts are noise
    alarm: Count = 3  # likewise for what runs away and must not wait that long
    baseline: Count = 10  # steps: the start that later ones are compared with, and what a median needs

    min_reward: float = 0.0  # mean reward of a step; a single rewarded sample is a start
    dead_steps: Count = 20  # in a row at or below `min_reward`
    max_no_spread: Share = 0.95  # of the groups teach nothing
    solved: Share = 0.95  # share of right answers above which no spread and no entropy are success, not sickness
    max_kl: Positive = 1.0  # nats per token from the reference: past it hardly a text of the old model is left
    max_gap: Positive = 0.05  # nats per token, mean, engine to trainer; bfloat16 shows 0.01 to 0.02
    min_entropy: Annotated[float, Field(ge=0)] = 0.01  # nats per token: samples of one prompt come out the same
    min_length: Share = 0.25  # of the start's, while the reward does not rise with it
    max_truncated: Share = 0.5  # of the samples hit the token limit, and more than at the start
    spike_factor: Annotated[float, Field(gt=1)] = 10.0  # gradient norm or loss over its running median
    spike_floor: Positive = 1.0  # neither is a spike below: clipping holds the norm, normalised advantages the loss
    spike_window: Count = 50  # steps of the running median


class PolicyLoss(Section):
    """The loss of GRPO and of its descendants; pipeline/rl/loss.py has each formula with its paper."""

    normalisation: Literal["sequence", "token", "constant"] = "sequence"  # GRPO, DAPO, Dr. GRPO
    ratio: Literal["token", "sequence"] = "token"  # sequence: GSPO
    old: Literal["trainer", "engine"] = "trainer"  # whose log-probabilities the ratio is against
    clip_low: NonNegative = 0.2  # the ratio may fall to 1 − this …
    clip_high: NonNegative = 0.2  # … and rise to 1 + this; R1's first stage: 10, DAPO: 0.28
    kl: Literal["k1", "k2", "k3"] = "k3"
    kl_coefficient: NonNegative = 0.001  # R1's; 0: no reference is held in memory
    importance_cap: Positive | None = None  # of the weights that correct rollout/trainer drift; None: no correction

    @model_validator(mode="after")
    def _one_correction(self) -> "PolicyLoss":
        if self.importance_cap is not None and self.old == "engine":
            raise ValueError(
                f"importance_cap {self.importance_cap}: must be null with old: engine, whose ratio corrects the drift"
            )
        return self


class GRPO(Optimisation):
    """Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300, section 4), with R1's options."""

    prompts: Count  # per step, each with a group of completions; R1: 32
    group: Annotated[int, Field(ge=2)]  # completions of one prompt; R1: 16
    max_new_tokens: Count
    temperature: Positive = 1.0  # of the rollouts, and of every log-probability
    slots: Count = 256  # completions that are written side by side; bounds memory, does not change the texts
    final_learning_rate: Share = 1.0  # constant after the warm-up
    beta2: Share = 0.99
    micro_batch_tokens: Count = 8_192
    minibatches: Count = 1  # updates per rollout; R1: 16
    scale_by_std: bool = True  # advantages in standard deviations of their group; False: Dr. GRPO
    resample_rounds: Annotated[int, Field(ge=0)] = 0  # in which groups without spread are replaced by new prompts' ones
    reference_every: Count = 400  # steps, after which the reference becomes the policy
    replay_experts: bool = False  # train the experts that the rollout used
    table_every: Count = 10  # steps between two tables of samples
    checkpoint_every: Count = 10
    loss: PolicyLoss = PolicyLoss()


class ReasoningRL(Section):
    """Dev2: reinforcement learning on rewards that can be checked. From the base model it is R1-Zero."""

    start: Literal["cold_start", "base"] = Field("cold_start", alias="from")
    train: GRPO
    rewards: Rewards = Rewards()
    health: Health = Health()

    @model_validator(mode="after")
    def _buffer_fits(self) -> "ReasoningRL":
        if self.rewards.weights.length and self.rewards.overlong_buffer > self.train.max_new_tokens:
            raise ValueError(
                f"rewards.overlong_buffer {self.rewards.overlong_buffer} is above train.max_new_tokens "
                f"{self.train.max_new_tokens}"
            )
        return self


# ---------------------------------------------------------------- evaluation


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
