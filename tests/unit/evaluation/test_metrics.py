"""Figures of judged samples against counting by hand."""

import polars as pl
import pytest

from pipeline.evaluation.metrics import form, pass_at_1
from pipeline.evaluation.sampling import choose
from pipeline.records import Problem, Sample, schema


def _samples(*rows: tuple[str, str, str]) -> pl.DataFrame:
    """(problem, task, verdict) → samples; the wrong ones are cut off."""
    samples = [
        Sample(
            "base", problem, task, number, "", 10 + number, verdict == "right", verdict == "right", verdict, "numeric 1"
        )
        for number, (problem, task, verdict) in enumerate(rows)
    ]
    return pl.DataFrame(samples, schema=schema(Sample))


SAMPLES = _samples(("a", "sum", "right"), ("a", "sum", "wrong"), ("b", "sum", "wrong"), ("c", "count", "right"))


def test_pass_at_1_is_the_mean_over_problems_of_the_share_right() -> None:
    figures = pass_at_1(SAMPLES, seed=0)
    assert figures["pass_at_1"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert figures["sum.pass_at_1"] == pytest.approx(0.25)
    assert figures["count.pass_at_1"] == 1
    assert figures["pass_at_1_low"] <= figures["pass_at_1"] <= figures["pass_at_1_high"]


def test_the_headline_comes_first() -> None:
    assert next(iter(pass_at_1(SAMPLES, seed=0))) == "pass_at_1"


@pytest.mark.parametrize("verdict", ["wrong", "unparseable", "timed out"])
def test_only_right_is_right(verdict: str) -> None:
    assert pass_at_1(_samples(("a", "sum", verdict)), seed=0)["pass_at_1"] == 0


def test_form_counts_shares_and_lengths() -> None:
    assert form(SAMPLES) == {"well_formed": 0.5, "truncated": 0.5, "tokens": 11.5}


def test_problems_are_held_out_checkable_and_always_the_same() -> None:
    def problem(number: int, split: str, verifier: str) -> Problem:
        return Problem(f"{number:016}", "s", "t", "q", "1", verifier, "", None, split)  # type: ignore[arg-type]

    rows = [problem(n, "evaluation" if n % 2 else "train", "none" if n % 3 == 0 else "exact") for n in range(20)]
    table = pl.DataFrame(rows, schema=schema(Problem))
    chosen = choose(table, 4)
    assert [int(name) for name in chosen["id"]] == [1, 5, 7, 11]
    assert choose(table.reverse(), 4).equals(chosen)
