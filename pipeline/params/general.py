"""Options of the second round of reinforcement learning: the preference model, its reward, the monitor, a judge."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.rl import RL
from pipeline.params.section import Count, NonNegative, Positive, Section, Share
from pipeline.params.training import Optimisation


class PairTraining(Optimisation):
    """Options of the training of a preference model."""

    pairs_per_step: Count
    balance_loss: NonNegative = 0.0  # the loss of the pairs alone


class Preference(Section):
    """The reward model of the general prompts; a second one like it, on other pairs, is its witness."""

    judges: Literal["answer", "output"] = "answer"  # the final answer alone (R1: helpfulness); all (R1: harmlessness)
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the pairs, by their prompts: neither model trains on them
    min_accuracy: Share = 0.6  # on the held-out pairs; the 95 % interval must lie above it, or the gate fails
    train: PairTraining


class PreferenceReward(Section):
    """When general prompts and the preference reward come in; R1: the last 400 of 1,700 steps, or it is hacked."""

    last: Annotated[float, Field(gt=0, le=1)] = 0.235  # share of the steps, at the end
    general: Annotated[float, Field(gt=0, lt=1)] = 0.25  # share of a step's prompts that are general ones then
    weight: Positive = 1.0  # of a reward between 0 and 1, as accuracy is


class Monitor(Section):
    """What shows whether the policy learns what is meant, or how the preference model can be pleased."""

    every: Count = 10  # steps between two looks, from where the preference reward comes in; the last step is looked at
    problems: Count = 200  # checkable ones of the train split, which this stage does not train on then
    prompts: Count = 50  # general ones, likewise
    samples: Count = 4  # of each


class ExternalJudge(Section):
    """One more reward for general prompts: a model behind an OpenAI-compatible endpoint compares two answers."""

    # Up to what stands before `/chat/completions`. The key has a variable of its own: none in the address.
    url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")]
    model: Annotated[str, Field(min_length=1)]
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] | None = None  # of the environment; None: no key
    weight: Positive = 0.5  # of the share of comparisons won
    against: Literal["group", "reference"] = "group"  # other samples of the prompt, or the problem's own reply
    opponents: Count = 1  # of each sample in its group; ignored against a reference, which is one
    both_orders: bool = True  # asked twice, and an answer that changes with the order is a tie; False: one seeded order
    max_answer_tokens: Count = 16  # of the judge
    timeout_s: Positive = 30.0  # of one request, answer included
    retries: Annotated[int, Field(ge=0)] = 5  # of what may pass: no connection, timeouts, status 429 and 5xx
    backoff_s: NonNegative = 1.0  # before the first retry, then twice as long each time
    concurrency: Count = 8  # requests side by side
    max_calls: Count  # of this work; what is in the cache costs none
    max_tokens: Count  # likewise, put in and got out, as the endpoint counts them
    max_unparseable: Share = 0.5  # of a step's verdicts; above it the run stops


class GeneralRL(RL):
    """R1 itself: reinforcement learning on checkable and on general prompts."""

    preference: PreferenceReward = PreferenceReward()
    monitor: Monitor = Monitor()
    judge: ExternalJudge | None = None

    @property
    def first_general_step(self) -> int:
        """The step, counted from 0, from which on there are general prompts; it leaves them one step at least."""
        steps = self.train.steps
        return steps - max(1, round(self.preference.last * steps))

    @model_validator(mode="after")
    def _checkable_remain(self) -> "GeneralRL":
        prompts, share = self.train.prompts, self.preference.general
        if math.ceil(share * prompts) >= prompts:
            raise ValueError(f"preference.general {share} leaves no checkable one of train.prompts {prompts} in a step")
        return self
