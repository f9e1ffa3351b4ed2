"""The sign-flip test against every flip, scipy's permutations and McNemar's exact test; the difference's interval."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.evaluation.metrics import per_problem
from pipeline.evaluation.paired import compare, sign_flip_p
from tests.unit.evaluation.tables import judged

DIFFERENCES = st.lists(st.integers(-4, 4), min_size=1, max_size=10)


@given(DIFFERENCES)
def test_p_is_the_share_of_all_flips_that_are_as_far_from_zero(values: list[int]) -> None:
    differences = np.array(values)
    sums = [abs(int((differences * signs).sum())) for signs in product((-1, 1), repeat=len(values))]
    expected = np.mean([total >= abs(differences.sum()) for total in sums])
    assert sign_flip_p(differences) == pytest.approx(expected)


@given(DIFFERENCES, st.integers(1, 5))
def test_p_knows_no_direction_and_no_scale(values: list[int], scale: int) -> None:
    differences = np.array(values)
    p = sign_flip_p(differences)
    assert 0 < p <= 1
    assert sign_flip_p(-differences) == pytest.approx(p)
    assert sign_flip_p(scale * differences) == pytest.approx(p)


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=60))
def test_with_one_sample_each_it_is_mcnemars_exact_test(values: list[int]) -> None:
    better, worse = values.count(1), values.count(-1)
    exact = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert sign_flip_p(np.array(values)) == pytest.approx(exact)


def test_p_agrees_with_scipys_random_permutations() -> None:
    differences = np.random.default_rng(0).integers(-4, 6, size=60)
    drawn = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    ).pvalue
    assert 0.001 < drawn < 0.5
    assert sign_flip_p(differences) == pytest.approx(drawn, abs=0.01)


def test_p_is_as_rarely_small_as_it_says_where_both_models_are_alike() -> None:
    rng = np.random.default_rng(2)
    ps = [sign_flip_p(rng.binomial(4, 0.6, 50) - rng.binomial(4, 0.6, 50)) for _ in range(600)]
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(0.05, abs=0.025)


def test_models_are_compared_problem_by_problem() -> None:
    problems = per_problem(judged({"new": ["rr", "rw", "ww", "rr"], "old": ["ww", "rr", "ww", "rw"]}))
    found = compare(problems, "new", "old", seed=0)
    assert (found.problems, found.better, found.worse) == (4, 2, 1)
    assert found.difference.mean == pytest.approx((1 - 0.5 + 0 + 0.5) / 4)
    assert found.p_value == sign_flip_p(np.array([2, -1, 0, 1]))
    back = compare(problems, "old", "new", seed=0)
    assert back.difference.mean == -found.difference.mean
    assert back.p_value == found.p_value


def test_pairing_takes_the_problems_own_difficulty_out() -> None:
    rng = np.random.default_rng(3)
    hardness = rng.random(300)
    letters = {
        name: ["".join("r" if right else "w" for right in rng.random(4) < chance) for chance in hardness * factor]
        for name, factor in (("new", 0.95), ("old", 0.85))
    }
    problems = per_problem(judged(letters))
    paired = compare(problems, "new", "old", seed=0)
    shares = [problems.filter(model=name)["pass_at_1"].to_numpy() for name in letters]
    apart = 2 * 1.96 * np.sqrt(sum(share.var() / len(share) for share in shares))
    assert paired.difference.high - paired.difference.low < 0.85 * apart
    assert paired.p_value < 0.01


def test_equal_models_differ_by_nothing() -> None:
    problems = per_problem(judged({"new": ["rw", "rr"], "old": ["wr", "rr"]}))
    found = compare(problems, "new", "old", seed=0)
    assert (found.difference.low, found.difference.mean, found.difference.high) == (0, 0, 0)
    assert found.p_value == 1
