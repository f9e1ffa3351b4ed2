"""score: what the completions of a rollout are worth."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from pipeline.generation.attempts import attempt
from pipeline.generation.requests import Completion
from pipeline.rewards.score import Scorer
from pipeline.rl.rollout import Group, Question


class Scored(Protocol):
    """A completion's reward, what it is made of, and what the verifier said, where one was asked."""

    @property
    def reward(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, float]: ...
    @property
    def verdict(self) -> str | None: ...
    @property
    def reason(self) -> str: ...


Judge = Callable[[Sequence[tuple[Question, Completion]]], Sequence[Scored]]
"""Scores completions beside each other and returns them in order."""

SPREAD = 1e-6
"""Standard deviation of rewards up to which a group counts as having none: below it is rounding, not preference."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoredGroup:
    """A question, its n completions, and what each of them is worth."""

    question: Question
    completions: tuple[Completion, ...]
    scores: tuple[Scored, ...]

    @property
    def rewards(self) -> np.ndarray:
        """(n,) float64"""
        return np.array([score.reward for score in self.scores], dtype=np.float64)

    @property
    def has_spread(self) -> bool:
        """Whether its rewards differ. Where they do not, nothing is to be learnt from comparing them."""
        return bool(self.rewards.std() > SPREAD)

    def samples(self) -> Iterator[tuple[Completion, Scored]]:
        return zip(self.completions, self.scores, strict=True)


def score(judge: Judge, groups: Sequence[Group]) -> list[ScoredGroup]:
    """Score all completions of all groups in one call."""
    pairs = [(group.question, completion) for group in groups for completion in group.completions]
    scores = iter(judge(pairs))
    return [
        ScoredGroup(group.question, group.completions, tuple(islice(scores, len(group.completions))))
        for group in groups
    ]


def rule_rewards(scorer: Scorer, limit: int) -> Judge:
    """The rewards that can be checked, of completions of at most `limit` tokens."""

    def judge(pairs: Sequence[tuple[Question, Completion]]) -> Sequence[Scored]:
        return scorer.score_all([attempt(question.problem, completion, limit) for question, completion in pairs])

    return judge
