"""Options of whatever samples completions: the sampler, rejection sampling."""

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.params.rl import Rewards
from pipeline.params.section import Count, Section, Share


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


class Selection(Section):
    """Which right completions become training data (DeepSeek-R1, section 2.3.3: readable ones)."""

    keep: Count = 1  # of one problem, at most: best by reward, then shortest, then most different
    min_language: Share = 0.95  # share of the thinking's words in `rewards.language`; below it languages are mixed
    max_repetition: Share = 0.2  # of the n-grams came before
    paragraph_chars: Count = 2_000  # of the thinking's longest paragraph
    code_blocks: bool = False  # whether the thinking may hold any


class RejectionSampling(Section):
    """The set that the general model and the students learn from: R1 has 600k reasoning and 200k general samples."""

    problems: Count  # checkable ones of the train split, drawn by the seed; all where there are fewer
    samples: Count  # completions of each
    sampling: Sampling = Sampling(temperature=1.0, top_p=1.0)
    rewards: Rewards = Rewards()
    selection: Selection = Selection()
    general: Annotated[float, Field(ge=0, lt=1)] = 0.25  # share of the set that curation's general traces make
    min_yield: Share = 0.5  # of the problems must have an accepted completion, or the gate fails
    min_task_yield: Share = 0.05  # likewise within each task

    @model_validator(mode="after")
    def _answers_are_checked(self) -> "RejectionSampling":
        if not self.rewards.weights.accuracy:
            raise ValueError("rewards.weights.accuracy: 0.0: must be above 0, as only right completions are kept")
        if self.selection.keep > self.samples:
            raise ValueError(f"selection.keep {self.selection.keep}: must not be above samples {self.samples}")
        return self
