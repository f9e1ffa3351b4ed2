"""Options of distillation: the students, and what each learns from its teacher."""

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.params.section import Count, Name, Positive, Section, Share
from pipeline.params.training import Base, Checkpoint, Optimisation, Training


class OnPolicy(Optimisation):
    """Generalised knowledge distillation after the fine-tuning (GKD, arXiv 2306.13649, algorithm 1).

    The student writes, the teacher says for every token what it would have written; the vocabularies must be equal.
    """

    prompts: Count  # of the set, per step; one completion each
    share: Share = Field(1.0, alias="lambda")  # of the completions that the student writes; the others are the set's
    beta: Share = 0.5  # 0: forward KL, 1: reverse KL, between them the generalised Jensen-Shannon divergence
    max_new_tokens: Count
    temperature: Positive = 1.0  # of the student's samples, and of both distributions that are compared
    slots: Count = 256  # completions that are written side by side; bounds memory, does not change the texts
    micro_batch_tokens: Count = 8_192
    final_learning_rate: Share = 1.0  # constant after the warm-up
    checkpoint_every: Count = 10


class Student(Section):
    """A model that is fine-tuned on the set; R1's ones never meet a reward (DeepSeek-R1, section 2.4)."""

    base: Base
    train: Training
    on_policy: OnPolicy | None = None

    @model_validator(mode="after")
    def _one_adapter(self) -> "Student":
        if self.on_policy is not None and self.on_policy.adapter != self.train.adapter:
            raise ValueError("on_policy.adapter: must be as train.adapter: it is that one which learns on")
        if self.train.adapter is not None and not isinstance(self.base, Checkpoint):
            raise ValueError("train.adapter: must be null with base.kind pretrain: no checkpoint would fit the adapter")
        return self


class Distillation(Section):
    students: Annotated[dict[Name, Student], Field(min_length=1)]
