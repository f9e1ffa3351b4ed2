"""Options of reinforcement learning: rewards, the health of a run, the loss, the step."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.params.section import Count, Language, NonNegative, Positive, Section, Share
from pipeline.params.training import Optimisation


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
    max_gap: Positive = 0.05  # nats per token, mean, engine to trainer; bfloat16 shows 0.003, on a GPU 0.02
    min_entropy: Annotated[float, Field(ge=0)] = 0.01  # nats per token: samples of one prompt come out the same
    min_length: Share = 0.25  # of the start's, while the reward does not rise with it
    max_truncated: Share = 0.5  # of the samples hit the token limit, and more than at the start
    spike_factor: Annotated[float, Field(gt=1)] = 10.0  # gradient norm or loss over its running median
    spike_floor: Positive = 1.0  # neither is a spike below: clipping holds the norm, normalised advantages the loss
    spike_window: Count = 50  # steps of the running median
    max_accuracy_fall: Share = 0.05  # on the monitor's problems, while the preference rises: reward hacking
    max_agreement_fall: Share = 0.1  # of the preference model with its witness, likewise


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
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    micro_batch_tokens: Count = 8_192
    minibatches: Count = 1  # updates per rollout; R1: 16
    scale_by_std: bool = True  # advantages in standard deviations of their group; False: Dr. GRPO
    resample_rounds: Annotated[int, Field(ge=0)] = 0  # in which groups without spread are replaced by new prompts' ones
    reference_every: Count = 400  # steps, after which the reference becomes the policy
    replay_experts: bool = False  # train the experts that the rollout used
    table_every: Count = 10  # steps between two tables of samples
    checkpoint_every: Count = 10
    loss: PolicyLoss = PolicyLoss()


class RL(Section):
    """What every stage of reinforcement learning has."""

    train: GRPO
    rewards: Rewards = Rewards()
    health: Health = Health()

    @model_validator(mode="after")
    def _buffer_fits(self) -> Self:
        if self.rewards.weights.length and self.rewards.overlong_buffer > self.train.max_new_tokens:
            raise ValueError(
                f"rewards.overlong_buffer {self.rewards.overlong_buffer} is above train.max_new_tokens "
                f"{self.train.max_new_tokens}"
            )
        return self


class ReasoningRL(RL):
    """Dev2: reinforcement learning on rewards that can be checked. From the base model it is R1-Zero."""

    start: Literal["cold_start", "base"] = Field("cold_start", alias="from")
