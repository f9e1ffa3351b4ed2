"""What health remembers of a run: a bounded window of recent steps, and the run's first steps to compare with."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its watched figures, as far as they are finite."""

    number: int
    figures: Mapping[str, float]
    flawed: bool = False  # its update was not to be made; its loss and gradient norm say nothing about others


@dataclass(frozen=True, slots=True)
class Past:
    """The first steps of a run and the newest ones, both in order. Never changed, only replaced."""

    start: tuple[Step, ...] = ()
    recent: tuple[Step, ...] = ()

    def with_figures(self, step: int, figures: Mapping[str, float], *, start: int, window: int) -> "Past":
        """Add figures of `step`, the newest or a new one; keep `start` first steps and the newest `window`."""
        assert not self.recent or step >= self.recent[-1].number, "a step comes again: roll_back comes before it"
        finite = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        grows = len(self.start) < start or self.start[-1].number == step
        return Past(_put(self.start, step, finite) if grows else self.start, _put(self.recent, step, finite)[-window:])

    def with_flaw(self) -> "Past":
        """The newest step is flawed."""
        return replace(self, recent=(*self.recent[:-1], replace(self.recent[-1], flawed=True)))

    def until(self, step: int) -> "Past":
        """What was known after `step`."""
        return Past(
            tuple(entry for entry in self.start if entry.number <= step),
            tuple(entry for entry in self.recent if entry.number <= step),
        )

    def last(self, name: str, count: int) -> list[float]:
        """A figure in the newest `count` steps, in order; nothing where one of them is without it."""
        values = [entry.figures[name] for entry in self.recent[-count:] if name in entry.figures]
        return values if len(values) == count else []

    def at_start(self, name: str) -> float | None:
        """Median of a figure over the first steps, or None."""
        values = [entry.figures[name] for entry in self.start if name in entry.figures]
        return median(values) if values else None

    def typical(self, name: str, *, before: int, least: int, window: int) -> float | None:
        """Median magnitude of a figure over the sound steps among the `window` before step `before`.

        None where fewer than `least` have it.
        """
        sound = [entry for entry in self.recent if entry.number < before and not entry.flawed][-window:]
        values = [abs(entry.figures[name]) for entry in sound if name in entry.figures]
        return median(values) if len(values) >= least else None

    @property
    def flaws(self) -> int:
        """How many of the newest steps in a row are flawed."""
        count = 0
        for entry in reversed(self.recent):
            if not entry.flawed:
                break
            count += 1
        return count

    def to_json(self) -> dict[str, Any]:
        return {"start": [asdict(entry) for entry in self.start], "recent": [asdict(entry) for entry in self.recent]}

    @staticmethod
    def from_json(document: Mapping[str, Collection[Mapping[str, Any]]]) -> "Past":
        return Past(*(tuple(Step(**entry) for entry in document[part]) for part in ("start", "recent")))


def _put(steps: tuple[Step, ...], number: int, figures: Mapping[str, float]) -> tuple[Step, ...]:
    """Add figures to the newest step, or a new one."""
    if steps and steps[-1].number == number:
        return (*steps[:-1], replace(steps[-1], figures={**steps[-1].figures, **figures}))
    return (*steps, Step(number, figures))
