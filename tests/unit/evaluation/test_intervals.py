"""Bootstrap intervals against the normal approximation and the exact binomial."""

from dataclasses import astuple
from itertools import product

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.intervals import Interval, difference_interval, mean_interval, mean_intervals


def test_agrees_with_the_normal_approximation_on_many_problems() -> None:
    values = np.random.default_rng(0).random(2000)
    interval = mean_interval(values.tolist(), seed=0)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [mean_interval(rng.binomial(4, 0.3, 60) / 4, seed=i, resamples=400) for i in range(200)]
    covered = sum(interval.low <= 0.3 <= interval.high for interval in intervals) / 200
    assert 0.88 <= covered <= 0.99


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.05 ** (1 / 50) * 0.98, 1.0), (0.0, 0.0, 0.08)])
def test_all_right_or_all_wrong_is_not_certainty(value: float, low: float, high: float) -> None:
    interval = mean_interval([value] * 50, seed=0)
    exact = stats.binomtest(int(50 * value), 50).proportion_ci()
    assert (interval.low, interval.high) == (exact.low, exact.high)
    assert low <= interval.low <= interval.high <= high


def test_same_seed_same_bounds() -> None:
    assert mean_interval([0, 1, 1, 0.5], seed=3) == mean_interval([0, 1, 1, 0.5], seed=3)


def test_bounds_are_the_percentiles_of_all_resamples() -> None:
    """The bootstrap distribution of three problems has 27 equally likely resamples."""
    values = [0.0, 0.25, 1.0]
    means = [np.mean(resample) for resample in product(values, repeat=3)]
    interval = mean_interval(values, seed=0, resamples=20_000)
    low, high = np.percentile(means, [2.5, 97.5], method="inverted_cdf")
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_columns_are_resampled_together_and_as_if_alone() -> None:
    values = np.random.default_rng(4).random((50, 2))
    both = np.column_stack([values, np.ones(50), values[:, 0] + values[:, 1]])
    first, second, constant, total = mean_intervals(both, seed=5)
    for interval, column in zip((first, second), values.T, strict=True):
        assert astuple(interval) == pytest.approx(astuple(mean_interval(column.tolist(), seed=5)))
    assert constant == mean_interval([1.0] * 50, seed=5)
    assert total.mean == pytest.approx(first.mean + second.mean)


def test_a_difference_without_spread_is_a_point() -> None:
    assert difference_interval(np.zeros(9), seed=0) == Interval(0, 0, 0)
    assert difference_interval(np.full(9, -1.0), seed=0) == Interval(-1, -1, -1)
    assert difference_interval(np.array([0.5, -0.5]), seed=0).mean == 0
