"""Checkable and general prompts in one run: which of them a step asks, and what an answer to either is worth.

A checkable prompt is worth what the rules say. A general one has no right answer: it is worth its form and language by
the same rules, and what a preference model and, where there is one, a judge say of it, each between 0 and 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.generation.requests import Completion
from pipeline.params import PreferenceReward, Rewards
from pipeline.rewards.score import Scorer
from pipeline.rl.rollout import Question, Questions
from pipeline.rl.scoring import Scored, rule_rewards

Opinion = Callable[[Sequence[tuple[Question, Completion]]], Sequence[float]]
"""What completions beside each other are worth, each between 0 and 1, in order. Those of one question are a group."""


class MixedQuestions:
    """Checkable questions, and from one step on some general ones evenly among them."""

    def __init__(self, checkable: Questions, general: Questions, options: PreferenceReward, first_step: int) -> None:
        self._checkable, self._general = checkable, general
        self._share, self._first_step = options.general, first_step

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(self._checkable.longest, self._general.longest)

    def take(self, place: int, count: int, step: int) -> list[Question]:
        """The `count` questions from `place` on, as they are asked in `step`."""
        return [self._at(place + offset, step) for offset in range(count)]

    def _at(self, place: int, step: int) -> Question:
        before, until = (math.floor(self._share * end) for end in (place, place + 1))
        return self._general[before] if step >= self._first_step and until > before else self._checkable[place]


@dataclass(frozen=True, slots=True)
class Sum:
    """A rule reward and what was added to it."""

    reward: float
    parts: Mapping[str, float]
    verdict: str | None
    reason: str


class GeneralRewards:
    """Scores by rules and, where there is nothing to check, by opinions too."""

    def __init__(self, options: Rewards, opinions: Mapping[str, tuple[float, Opinion]], limit: int) -> None:
        """`opinions`: name of the part → its weight, and whose opinion it is; `limit`: tokens of a completion."""
        self._checkable = rule_rewards(Scorer(options), limit)
        without_accuracy = options.weights.model_copy(update={"accuracy": 0.0})
        self._form = Scorer(options.model_copy(update={"weights": without_accuracy}))
        self._opinions, self._limit = opinions, limit

    def __call__(self, pairs: Sequence[tuple[Question, Completion]]) -> Sequence[Scored]:
        general = [is_general(question) for question, _ in pairs]
        checked = iter(self._checkable([pair for pair, apart in zip(pairs, general, strict=True) if not apart]))
        judged = iter(self._judge([pair for pair, apart in zip(pairs, general, strict=True) if apart]))
        return [next(judged if apart else checked) for apart in general]

    def _judge(self, pairs: Sequence[tuple[Question, Completion]]) -> list[Sum]:
        if not pairs:
            return []
        ruled = rule_rewards(self._form, self._limit)(pairs)
        added = {name: opinion(pairs) for name, (_, opinion) in self._opinions.items()}
        sums = []
        for place, rule in enumerate(ruled):
            parts = {name: values[place] for name, values in added.items()}
            worth = sum(self._opinions[name][0] * value for name, value in parts.items())
            said = "; ".join(f"{name}: {value:.3f}" for name, value in parts.items())
            sums.append(Sum(rule.reward + worth, {**rule.parts, **parts}, None, f"{rule.reason}; {said}"))
        return sums


def is_general(question: Question) -> bool:
    return question.problem.verifier == "none"


def set_aside(questions: Sequence[Question], count: int) -> tuple[list[Question], list[Question]]:
    """The first `count` questions by id, a hash and so a fair draw, and the others in their order.

    Raises InputError where no others would remain.
    """
    apart = {question.problem.id for question in sorted(questions, key=lambda each: each.problem.id)[:count]}
    if len(questions) <= len(apart):
        kind = "general" if questions and is_general(questions[0]) else "checkable"
        raise InputError(
            f"general_rl.monitor: {count} prompts to look at: there are only {len(questions)} {kind} ones in the train "
            "split, and some must remain to train on"
        )
    chosen = [question for question in questions if question.problem.id in apart]
    return chosen, [question for question in questions if question.problem.id not in apart]
