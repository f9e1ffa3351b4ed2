"""What every verifier says."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["right", "wrong", "unparseable", "timed out"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The score (1.0 or 0.0), the outcome, and in words why."""

    score: float
    verdict: Outcome
    reason: str


def right(reason: str = "equal") -> Verdict:
    return Verdict(1.0, "right", reason)


def wrong(reason: str = "not equal") -> Verdict:
    return Verdict(0.0, "wrong", reason)


def unparseable(reason: str = "the answer cannot be read by its verifier") -> Verdict:
    return Verdict(0.0, "unparseable", reason)


def timed_out(reason: str) -> Verdict:
    return Verdict(0.0, "timed out", reason)
