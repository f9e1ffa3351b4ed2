"""Which candidate meets the target, and which of those is the cheapest; or what each misses, and by how much."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.evaluation.intervals import Interval
from pipeline.params import Target

MIB = 2**20
SHOWN = {"accuracy_loss": (100, "points", 1), "memory": (1, "MiB", 1), "latency": (1, "s", 3)}
"""Of each bound: factor, unit and digits in a message."""
BOUNDS = tuple(SHOWN)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One release, served in one way on this machine."""

    release: str
    way: str
    kind: str  # teacher | student | variant
    pass_at_1: Interval
    loss: Interval  # pass@1 of the teacher minus its own, on the same problems
    memory: float  # MiB, at its peak
    model_memory: float  # MiB of that, which the model and its cache take
    resident: float  # MiB with the mapped files
    speed: float  # tokens a second with 16 clients
    speed_alone: float
    first_token: float  # seconds
    latency: float  # seconds
    cost: float  # of a million tokens, in the currency of machine.prices

    @property
    def name(self) -> str:
        return self.release if self.way == "memory" else f"{self.release} ({self.way})"

    def against(self, bound: str) -> float:
        """What is held against one of `BOUNDS`."""
        return self.loss.mean if bound == "accuracy_loss" else float(getattr(self, bound))


@dataclass(frozen=True, slots=True)
class Miss:
    """A bound that a candidate does not keep."""

    bound: str
    limit: float
    found: float

    @property
    def excess(self) -> float:
        """Of the limit; where that is 0, as it is."""
        return (self.found - self.limit) / (self.limit or 1.0)

    def __str__(self) -> str:
        factor, unit, digits = SHOWN[self.bound]
        found, over = (f"{factor * value:,.{digits}f}" for value in (self.found, self.found - self.limit))
        return f"{self.bound} {found} {unit}, {over} above {factor * self.limit:g}"


def misses(candidate: Candidate, target: Target) -> list[Miss]:
    """In the order of `BOUNDS`; a value at the bound keeps it."""
    return list(_misses(candidate, target))


def _misses(candidate: Candidate, target: Target) -> Iterator[Miss]:
    for bound in BOUNDS:
        limit, found = getattr(target, bound), candidate.against(bound)
        if limit is not None and found > limit + 1e-9:
            yield Miss(bound, limit, found)


def choose(candidates: Sequence[Candidate], target: Target) -> Candidate | None:
    """The cheapest per token that keeps every bound; of equally cheap ones the smallest. None where none does."""
    fitting = [candidate for candidate in candidates if not misses(candidate, target)]
    return min(fitting, key=lambda one: (one.cost, one.memory, one.name), default=None)


def refusal(candidates: Sequence[Candidate], target: Target) -> str:
    """What every candidate misses, the nearest to the target first."""
    missed = [(candidate, misses(candidate, target)) for candidate in candidates]
    missed.sort(key=lambda one: (len(one[1]), max(miss.excess for miss in one[1]), one[0].name))
    lines = [f"    {candidate.name}: {'; '.join(map(str, several))}" for candidate, several in missed]
    head = f"plan: none of {len(candidates)} candidates meets deployment.target; what each misses, the nearest first:"
    return "\n".join([head, *lines])
