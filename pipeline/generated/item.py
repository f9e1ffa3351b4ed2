"""What every family of generated problems makes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """One generated problem with its worked solution."""

    task: str
    prompt: str
    thinking: str
    gold: str  # the right answer; where nothing checks it (verifier none), one reply of several
    verifier: str
    difficulty: int  # 1 is easiest; the scale is the family's own
    language: str = ""
