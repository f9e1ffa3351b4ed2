"""pass@k and cons@k against counting every subset and every ballot."""

from collections import Counter
from fractions import Fraction
from itertools import combinations
from math import prod

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.evaluation.estimators import consensus, pass_at_k, sensible_ks, vote
from pipeline.rewards.answer import verify
from tests.unit.evaluation.tables import judged, sample, table


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_right_one(rights: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(rights)))
    subsets = [any(subset) for subset in combinations(rights, k)]
    assert pass_at_k(len(rights), sum(rights), k) == pytest.approx(sum(subsets) / len(subsets))


@given(st.integers(1, 200), st.data())
def test_pass_at_k_agrees_with_the_hypergeometric_law_and_the_papers_product(n: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    value = pass_at_k(n, right, k)
    assert value == pytest.approx(1 - stats.hypergeom(n, right, k).pmf(0), abs=1e-9)
    product = prod(1 - k / i for i in range(n - right + 1, n + 1)) if n - right >= k else 0.0  # Chen et al., figure 3
    assert value == pytest.approx(1 - product, abs=1e-9)
    if k < n:
        assert value <= pass_at_k(n, right, k + 1) + 1e-12


def test_pass_at_1_is_the_share_right() -> None:
    assert [pass_at_k(4, right, 1) for right in range(5)] == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(("samples", "ks"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_ks_are_powers_of_two_and_all(samples: int, ks: list[int]) -> None:
    assert sensible_ks(samples) == ks


@pytest.mark.parametrize(
    ("verdicts", "chance"),
    [
        ("rrw", 1.0),  # the wrong one is outvoted
        ("rww", 0.0),  # equal wrong answers outvote it
        ("rwu", 0.5),  # a tie, drawn by lot; the unparseable one does not vote
        ("ruu", 1.0),
        ("uuu", 0.0),  # nobody votes
    ],
)
def test_the_majority_decides(verdicts: str, chance: float) -> None:
    assert consensus(judged({"m": [verdicts]}), ["problem_id"])["consensus"].to_list() == [chance]


ANSWERS = st.lists(st.sampled_from(["7", "7.0", "8", "8.00", "9", "nine", "Nine ", ""]), min_size=1, max_size=7)


@given(ANSWERS)
def test_consensus_agrees_with_a_count_of_the_verifiers_own_equalities(answers: list[str]) -> None:
    """Gold 7. The second implementation asks the verifier whether two answers are equal, for every pair."""
    verdicts = [verify(answer, "7", "numeric").verdict for answer in answers]
    rows = [
        sample("m", "p", number, answer=answer, verdict=verdict)
        for number, (answer, verdict) in enumerate(zip(answers, verdicts, strict=True))
    ]
    voters = [answer for answer, verdict in zip(answers, verdicts, strict=True) if verdict != "unparseable"]
    sizes = [sum(verify(answer, other, "numeric").verdict == "right" for other in voters) for answer in voters]
    winners = {Fraction(answer) for answer, size in zip(voters, sizes, strict=True) if size == max(sizes)}
    expected = float(Fraction(7 in winners, len(winners))) if winners else 0.0
    assert consensus(table(rows), ["problem_id"])["consensus"].to_list() == [pytest.approx(expected)]


def test_equal_answers_have_equal_votes() -> None:
    assert vote("1,000", "wrong", "numeric 1") == vote("1000.0", "wrong", "numeric 1")
    assert vote(r"\sqrt{2} ", "wrong", "math 1") == vote(r"\SQRT{2}", "wrong", "math 1")
    assert vote("1000", "wrong", "exact 1") != vote("1000.0", "wrong", "exact 1")
    assert vote(r"\frac12", "right", "math 1") == vote("0.5", "right", "math 1")
    assert vote("while True: pass", "timed out", "code 1") is not None
    assert vote("", "unparseable", "numeric 1") is None


def test_groups_are_apart() -> None:
    samples = judged({"a": ["rr", "ww"], "b": ["ww", "rw"]})
    found = consensus(samples, ["model", "problem_id"]).sort("model", "problem_id")
    assert Counter(dict(zip(["a0", "a1", "b0", "b1"], found["consensus"], strict=True))) == {
        "a0": 1.0,
        "a1": 0.0,
        "b0": 0.0,
        "b1": 0.5,
    }
    assert isinstance(found, pl.DataFrame)
