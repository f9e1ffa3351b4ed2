"""The rule reward of a completion: its parts, each by one verifier, summed by their weights.

No neural model has a part in it (DeepSeek-R1, section 2.2.2): what can be checked cannot be hacked so easily.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.params import Rewards
from pipeline.rewards.answer import verify
from pipeline.rewards.containment import require_sandbox
from pipeline.rewards.format import check_form
from pipeline.rewards.language import language_share
from pipeline.rewards.length import soft_overlong
from pipeline.rewards.repetition import repetition
from pipeline.rewards.verdict import Outcome, Verdict, unparseable

_WAITED_FOR = ("math", "code")
"""Verifiers that other processes do the work for, so that several go beside each other."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A completion of a problem, to be scored."""

    prompt: str
    gold: str
    verifier: str
    text: str  # without the end token or with it
    tokens: int  # of the completion
    cut: bool  # by the token limit
    limit: int  # the most tokens that it could have had


@dataclass(frozen=True, slots=True)
class Scored:
    """A completion's reward, the parts it is summed from (without their weights), and what became of its answer."""

    reward: float
    parts: dict[str, float]  # by name, as in params' `weights`; without those of weight 0
    verdict: Outcome | None  # None where accuracy has no weight
    reason: str  # of every part, in words


class Scorer:
    """Scores completions by the weights of `options`. For use by one thread or several."""

    def __init__(self, options: Rewards) -> None:
        self.options = options

    def require(self, verifiers: Iterable[str]) -> None:
        """Raise InputError where problems of one of these verifiers cannot be scored here. Call before any work."""
        if not self.options.weights.accuracy:
            return
        different = set(verifiers)
        if "none" in different:
            raise InputError(
                f"rewards.weights.accuracy: {self.options.weights.accuracy:g}: must be 0 for problems of verifier "
                "none, which have no right answer; leave them out, or reward them by a preference model"
            )
        if "code" in different:
            require_sandbox()

    def __call__(self, attempt: Attempt) -> Scored:
        """Score one completion."""
        weights, form = self.options.weights, check_form(attempt.text)
        parts: dict[str, float] = {}
        reasons: list[str] = []
        verdict: Verdict | None = None
        if weights.accuracy:
            self.require([attempt.verifier])
            if form.completion.well_formed:
                verdict = verify(form.completion.answer, attempt.gold, attempt.verifier)
            else:  # an answer outside the tags is no answer
                verdict = unparseable(f"no answer: {form.reason}")
            parts["accuracy"] = verdict.score
            reasons.append(f"accuracy: {verdict.reason}")
        if weights.format:
            parts["format"] = form.score
            reasons.append(f"format: {form.reason}")
        if weights.language:
            share = language_share(form.completion.thinking, self.options.language, attempt.prompt)
            parts["language"] = share.score
            reasons.append(f"language: {share.reason}")
        if weights.length:
            parts["length"] = self._length(attempt)
            reasons.append(f"length: {attempt.tokens} of {attempt.limit} tokens{', cut' if attempt.cut else ''}")
        if weights.repetition:
            parts["repetition"] = repetition(attempt.text, self.options.repetition_ngram)
            reasons.append(f"repetition: {-parts['repetition']:.0%} of the {self.options.repetition_ngram}-grams")
        reward = sum(getattr(weights, name) * score for name, score in parts.items())
        return Scored(reward, parts, verdict.verdict if verdict else None, "; ".join(reasons))

    def score_all(self, attempts: Sequence[Attempt]) -> list[Scored]:
        """Score completions, in order. Answers for math-verify and the sandbox are verified beside each other."""
        self.require({attempt.verifier for attempt in attempts})
        if not self.options.weights.accuracy or not _waited_for(attempts):
            return [self(attempt) for attempt in attempts]
        with ThreadPoolExecutor(os.cpu_count(), "verifier") as pool:
            return list(pool.map(self, attempts))

    def _length(self, attempt: Attempt) -> float:
        buffer = self.options.overlong_buffer
        if buffer > attempt.limit:
            raise InputError(f"rewards.overlong_buffer: {buffer}: must not be above the token limit {attempt.limit}")
        return soft_overlong(attempt.tokens, attempt.limit, buffer, cut=attempt.cut)


def _waited_for(attempts: Collection[Attempt]) -> bool:
    return any(attempt.verifier in _WAITED_FOR for attempt in attempts)
