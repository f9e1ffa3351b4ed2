"""Options of right-sizing: the variants of a release, how they are measured, and what a plan must meet."""

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.params.section import Count, Name, Positive, Section, Share
from pipeline.params.training import Training


class Variant(Section):
    """A release made smaller: experts cut, then matrices packed, where both are asked for."""

    of: Name  # a release, or a variant that is named before this one
    experts: Count | None = None  # that each mixture layer keeps; None: all
    recover: Training | None = None  # supervised training after the cut, on the set that the students learn from
    int8: bool = False  # matrices as int8, one scale per output channel

    @model_validator(mode="after")
    def _something_changes(self) -> "Variant":
        if self.experts is None and not self.int8:
            raise ValueError("must make something smaller: experts, int8 or both")
        if self.recover is not None and self.experts is None:
            raise ValueError("recover: has no meaning without experts: nothing was cut")
        if self.recover is not None and self.recover.adapter is not None:
            raise ValueError("recover.adapter: must be null: no checkpoint has the cut model that it would fit")
        return self


class Sizing(Section):
    """How variants are made and measured."""

    profile: Count = 256  # problems of the train split that the model answers, to see which experts it uses
    problems: Count = 200  # held-out ones that every variant is asked, the first of those of the evaluation
    samples: Count = 2  # of each; at most evaluation.samples, whose first ones they are compared with
    curve: Annotated[list[Share], Field(min_length=1)] = [0.85, 0.7, 0.55, 0.4]  # shares of the experts left, without
    # any training after it, that artifacts/deployment/pruning.csv tells of


class Target(Section):
    """What a plan must meet: of the releases that do, the cheapest per token is chosen. None: not bounded."""

    accuracy_loss: Share = 0.02  # pass@1 below the teacher's on the same problems: the mean difference
    memory: Positive | None = None  # MiB that the serving process has to itself at its peak; the page cache is not its
    latency: Positive | None = None  # seconds from a request to the end of its answer, 95 of 100, with 16 clients


class Plan(Section):
    """How `r1flow plan` measures releases on a machine."""

    problems: Count = 128  # held-out ones, one answer each
    alone: Count = 8  # of them also one after the other, for the speed with one client
    hot: Share = 0.25  # of the experts, the most used ones, that an offloaded model keeps in memory
