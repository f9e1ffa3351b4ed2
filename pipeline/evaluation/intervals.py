"""Uncertainty of means over problems.

One value is one problem (the mean over its samples): problems are what was drawn at random; the samples of one problem
are not independent of each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
BATCH_NUMBERS = 2**24
"""Numbers that are resampled at once; bounds memory."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1%} [{self.low:.1%}, {self.high:.1%}]"


def mean_interval(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Mean of `values`, one for each problem, with its 95 % percentile bootstrap interval (Efron 1979)."""
    return mean_intervals(np.asarray(values, dtype=np.float64)[:, None], seed, resamples)[0]


def difference_interval(differences: np.ndarray, seed: int) -> Interval:
    """The same for differences of two models on the same problems; a point where all problems have the same one."""
    if differences.min() == differences.max():
        return Interval(*[float(differences[0])] * 3)
    return mean_interval(differences.tolist(), seed)


def mean_intervals(values: np.ndarray, seed: int, resamples: int = RESAMPLES) -> list[Interval]:
    """The same for each column of `values`, (problems, figures): all of them over the same resampled problems."""
    assert len(values) > 0
    intervals: list[Interval | None] = [None] * values.shape[1]
    constant = values.min(axis=0) == values.max(axis=0)
    for column in np.flatnonzero(constant):  # nothing to resample: it says nothing of problems that were not drawn
        intervals[column] = _of_constant(float(values[0, column]), len(values))
    varied = np.flatnonzero(~constant)
    if len(varied):
        columns = np.ascontiguousarray(values[:, varied].T)  # (figures, problems)
        result = stats.bootstrap(
            (columns,),
            np.mean,
            axis=-1,
            n_resamples=resamples,
            batch=max(1, min(100, BATCH_NUMBERS // columns.size)),  # the same draws, whatever it is
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        for place, column in enumerate(varied):
            mean = float(columns[place].mean())
            intervals[column] = Interval(mean, float(result.low[place]), float(result.high[place]))
    return [interval for interval in intervals if interval is not None]


def _of_constant(value: float, count: int) -> Interval:
    """Exact binomial interval (Clopper and Pearson) where all are right or all wrong; a point for other constants."""
    if value not in (0.0, 1.0):
        return Interval(value, value, value)
    interval = stats.binomtest(round(value * count), count).proportion_ci(method="exact")
    return Interval(value, float(interval.low), float(interval.high))
