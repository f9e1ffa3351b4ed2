"""Uncertainty of a mean over problems."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1%} [{self.low:.1%}, {self.high:.1%}]"


def mean_interval(values: Sequence[float], seed: int, resamples: int = 2000) -> Interval:
    """Mean of `values` with its 95 % percentile bootstrap interval (Efron 1979).

    One value is one problem (the mean over its samples): problems are what was drawn at random; the samples of one
    problem are not independent of each other.
    """
    assert len(values) > 0
    array = np.asarray(values, dtype=np.float64)
    if array.min() == array.max():  # nothing to resample: the bootstrap says nothing of problems that were not drawn
        return _clopper_pearson(array)
    result = stats.bootstrap(
        (array,), np.mean, n_resamples=resamples, batch=100, method="percentile", rng=np.random.default_rng(seed)
    )
    return Interval(float(array.mean()), float(result.confidence_interval.low), float(result.confidence_interval.high))


def _clopper_pearson(array: np.ndarray) -> Interval:
    """The exact binomial interval, for problems that are all right or all wrong; a point for any other constant."""
    if array[0] not in (0.0, 1.0):
        return Interval(float(array[0]), float(array[0]), float(array[0]))
    interval = stats.binomtest(int(array.sum()), len(array)).proportion_ci(method="exact")
    return Interval(float(array[0]), float(interval.low), float(interval.high))
