"""Figures of judged samples against counting by hand."""

import numpy as np
import polars as pl
import pytest

from pipeline.evaluation.choice import choose
from pipeline.evaluation.intervals import mean_interval
from pipeline.evaluation.metrics import BINS, difficulty_levels, figure_names, measure, overall, per_problem
from pipeline.records import Problem, schema
from tests.unit.evaluation.tables import judged, sample, table

SAMPLES = table(
    [
        sample("m", "a", 0, tokens=10),
        sample("m", "a", 1, tokens=14, verdict="unparseable", well_formed=False, finished=False, answer=""),
        sample("m", "b", 0, tokens=20, verdict="wrong", difficulty=2.0, language=0.5),
        sample("m", "b", 1, tokens=20, verdict="wrong", difficulty=2.0),
        sample("m", "c", 0, tokens=8, task="count", difficulty=None),
        sample("m", "c", 1, tokens=8, task="count", difficulty=None),
        sample("m", "d", 0, task="request", verdict="unchecked", verifier="none", preference=1.0),
        sample("m", "d", 1, task="request", verdict="unchecked", verifier="none", preference=2.0),
    ]
)


def test_a_problems_figures_are_means_over_its_samples() -> None:
    problems = per_problem(SAMPLES)
    assert problems["problem_id"].to_list() == ["a", "b", "c"]  # what has no right answer has no such figures
    first = problems.row(0, named=True)
    assert [first[name] for name in ("samples", "right", "pass_at_1", "pass_at_2", "cons_at_2")] == [2, 1, 0.5, 1, 1]
    assert [first[name] for name in ("well_formed", "truncated", "language", "tokens")] == [0.5, 0.5, 1, 12]
    assert problems["language"][1] == 0.75
    assert problems["pass_at_1"].to_list() == [0.5, 0, 1]


def test_the_headline_comes_first() -> None:
    assert figure_names(4)[:4] == ["pass_at_1", "pass_at_2", "pass_at_4", "cons_at_4"]


@pytest.mark.parametrize("letter", "wut")
def test_only_right_is_right(letter: str) -> None:
    assert per_problem(judged({"m": [letter]}))["pass_at_1"].to_list() == [0]


def test_figures_are_means_over_problems_with_their_bounds() -> None:
    measured = measure(per_problem(SAMPLES), seed=3)
    figures = overall(measured, "m")
    assert figures["pass_at_1"] == mean_interval([0.5, 0, 1], seed=3)
    assert figures["tokens"].mean == pytest.approx((12 + 20 + 8) / 3)
    groups = measured.filter(figure="pass_at_1").select("task", "difficulty", "problems", "mean").rows()
    assert groups == [
        ("", "", 3, 0.5),
        ("count", "", 1, 1.0),  # no difficulty is given: no level
        ("sum", "", 2, 0.25),
        ("sum", "1", 1, 0.5),
        ("sum", "2", 1, 0.0),
    ]


def test_models_do_not_mix() -> None:
    measured = measure(per_problem(judged({"a": ["rr", "rw"], "b": ["ww", "rw"]})), seed=0)
    assert overall(measured, "a")["pass_at_1"].mean == 0.75
    assert overall(measured, "b")["pass_at_1"].mean == 0.25


def test_the_order_of_rows_does_not_matter() -> None:
    assert per_problem(SAMPLES.reverse()).equals(per_problem(SAMPLES))


@pytest.mark.parametrize("count", [1, BINS, BINS + 1, 500])
def test_levels_of_difficulty_part_the_problems(count: int) -> None:
    values = np.random.default_rng(0).permutation(np.arange(count) ** 1.5)
    difficulties = pl.Series([*values, None], dtype=pl.Float64)
    levels = list(difficulty_levels(difficulties))
    assert len(levels) == min(count, BINS)
    assert sum(level.cast(pl.Int64) for _, level in levels).to_list() == [1] * count + [0]
    assert len({label for label, _ in levels}) == len(levels)
    lowest = [difficulties.filter(level).min() for _, level in levels]
    assert lowest == sorted(lowest)  # type: ignore[type-var]


def test_problems_are_held_out_and_always_the_same() -> None:
    def problem(number: int, split: str, verifier: str) -> Problem:
        return Problem(f"{number:016}", "s", "t", "q", "1", verifier, "", None, split)  # type: ignore[arg-type]

    rows = [problem(n, "evaluation" if n % 2 else "train", "none" if n % 3 == 0 else "exact") for n in range(20)]
    problems = pl.DataFrame(rows, schema=schema(Problem))
    chosen = choose(problems, 4, 2)
    assert [int(name) for name in chosen["id"]] == [1, 5, 7, 11, 3, 9]
    assert choose(problems.reverse(), 4, 2).equals(chosen)
