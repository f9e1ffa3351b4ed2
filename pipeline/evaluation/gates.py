"""Which models may pass: floors between stages, the students' share of the teacher, the champion.

All three are one rule on a paired difference of pass@1: it must not lie further below than is allowed, either its mean
or, where it has to be shown, the lower end of its 95 % interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.errors import InputError
from pipeline.evaluation.intervals import Interval, difference_interval
from pipeline.evaluation.models import Entry, final, is_student
from pipeline.evaluation.paired import pair
from pipeline.params import Champion, ModelGates

PARAMS = "evaluation.gates"


@dataclass(frozen=True, slots=True)
class Gate:
    """One model against another one, and the rule."""

    model: str
    reference: str
    rates: tuple[float, float]  # pass@1 of the model and of the reference, on the problems of both
    problems: int
    keep: float  # of the reference's pass@1, that the model is measured against
    fall: float  # below it, that is allowed
    bound: str  # mean | low
    key: str  # of the rule, in params
    difference: Interval  # pass@1 of the model − keep × pass@1 of the reference

    @property
    def passed(self) -> bool:
        # Beyond rounding: a difference that is just what is allowed has used up what is allowed, no more.
        return getattr(self.difference, self.bound) >= -self.fall - 1e-9

    def __str__(self) -> str:
        ours, theirs = self.rates
        measure = "" if self.keep == 1 else f"{self.keep:.0%} of "
        what = "the mean" if self.bound == "mean" else "the interval's lower end"
        return (
            f"{self.model} has pass@1 {ours:.1%}, {self.reference} {theirs:.1%} on the same {self.problems} problems: "
            f"{_points(self.difference.mean)} points against {measure}it, "
            f"95 % interval {_points(self.difference.low)} to {_points(self.difference.high)}; "
            f"rule: {what} not below {_points(-self.fall)} ({self.key})"
        )


def _points(share: float) -> str:
    points = round(share * 100, 1)
    return f"{points:+.1f}".replace("-", "−") if points else "0.0"


def stage_gates(models: Sequence[Entry], problems: pl.DataFrame, gates: ModelGates, seed: int) -> list[Gate]:
    """The gates between the run's own models; `problems` as `metrics.per_problem` gives them."""
    found = []
    floors = {str(stage): floor for stage, floor in gates.stages.items()}
    for entry in models:
        if not entry.references:
            continue
        both = pair(problems, entry.name, entry.references[0])
        if is_student(entry.name):
            if (student := gates.students) is not None:
                key = f"{PARAMS}.students.keep"
                found.append(_gate(entry.name, entry.references[0], both, student.keep, 0.0, student.bound, key, seed))
        elif (floor := floors.get(entry.name)) is not None:
            key = f"{PARAMS}.stages.{entry.name}.fall"
            found.append(_gate(entry.name, entry.references[0], both, 1.0, floor.fall, floor.bound, key, seed))
    return found


def champion_gate(
    models: Sequence[Entry], problems: pl.DataFrame, champion: Champion, judged: pl.DataFrame, seed: int
) -> Gate:
    """The run's final model against the champion, whose problems `judged` are as `champion.read_champion` gives them.

    Raises InputError where too few problems are common to both, or were judged by other verifiers.
    """
    ours = problems.filter(pl.col("model") == final(list(models)).name)
    both = ours.join(judged, on="problem_id", suffix="_reference").sort("problem_id")
    if len(both) < champion.least:
        raise InputError(
            f"evaluation.champion: {champion.samples}: {len(both)} of its {len(judged)} problems are among the "
            f"{len(ours)} of this run: must be at least {champion.least} (evaluation.champion.least); "
            "evaluate the champion on this run's problems"
        )
    other = both.filter(pl.col("verifier") != pl.col("verifier_reference"))
    if len(other):
        row = other.row(0, named=True)
        raise InputError(
            f"evaluation.champion: {champion.samples}: problem {row['problem_id']} was judged by verifier "
            f"{row['verifier_reference']}, here by {row['verifier']}: must be the same; evaluate the champion again"
        )
    name, key = f"the champion's {champion.model}", "evaluation.champion.margin"
    return _gate(final(list(models)).name, name, both, 1.0, champion.margin, "low", key, seed)


def _gate(
    model: str, reference: str, both: pl.DataFrame, keep: float, fall: float, bound: str, key: str, seed: int
) -> Gate:
    ours, theirs = both["pass_at_1"].to_numpy(), both["pass_at_1_reference"].to_numpy()
    return Gate(
        model=model,
        reference=reference,
        rates=(float(ours.mean()), float(theirs.mean())),
        problems=len(both),
        keep=keep,
        fall=fall,
        bound=bound,
        key=key,
        difference=difference_interval(ours - keep * theirs, seed),
    )
