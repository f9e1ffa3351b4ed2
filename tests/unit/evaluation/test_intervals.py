"""Bootstrap intervals against the normal approximation and the exact binomial."""

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.intervals import mean_interval


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
