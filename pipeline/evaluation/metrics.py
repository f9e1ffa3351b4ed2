"""Figures of judged samples: per problem first, then means over problems with their intervals.

pass@1 is the mean over problems of the share of right samples (DeepSeek-R1, section 3: the mean over k samples).
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import polars as pl

from pipeline.evaluation.estimators import consensus, pass_at_k, sensible_ks
from pipeline.evaluation.intervals import Interval, mean_intervals
from pipeline.records import difficulty_name

PROBLEM = ["model", "problem_id"]
BINS = 6
"""At most so many levels of difficulty in a task; a scale with more values is cut at its quantiles."""


def per_problem(samples: pl.DataFrame) -> pl.DataFrame:
    """One row per model and checkable problem, sorted; the figures come last.

    `samples` is a table of `Sample`s, equally many of each problem. The figures, see `figure_names`, are all means
    over a problem's samples or estimated from them.
    """
    checked = samples.filter(pl.col("verdict") != "unchecked")
    table = checked.group_by(PROBLEM).agg(
        pl.col("task", "difficulty", "verifier").first(),
        samples=pl.len().cast(pl.Int64),
        right=(pl.col("verdict") == "right").sum().cast(pl.Int64),
        well_formed=pl.col("well_formed").mean(),
        truncated=(~pl.col("finished")).mean(),
        language=pl.col("language").mean(),
        tokens=pl.col("tokens").mean(),
    )
    [count] = table["samples"].unique()
    estimates = {k: {right: pass_at_k(count, right, k) for right in range(count + 1)} for k in sensible_ks(count)}
    passes = [
        pl.col("right").replace_strict(estimates[k], return_dtype=pl.Float64).alias(f"pass_at_{k}") for k in estimates
    ]
    table = table.with_columns(passes).join(consensus(checked, PROBLEM), on=PROBLEM, validate="1:1")
    return (
        table.rename({"consensus": f"cons_at_{count}"})
        .select(*PROBLEM, "task", "difficulty", "verifier", "samples", "right", *figure_names(count))
        .sort(PROBLEM)
    )


def figure_names(samples: int) -> list[str]:
    """The figures of problems with so many samples, the headline first."""
    passes = [f"pass_at_{k}" for k in sensible_ks(samples)]
    return [*passes, f"cons_at_{samples}", "well_formed", "truncated", "language", "tokens"]


def measure(problems: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Every figure of every model over all problems, per task, and per difficulty within a task.

    `problems` as `per_problem` gives them. Columns: model, task ("" for all of them), difficulty ("" likewise; a
    source's own scale, so it means something within a task only), problems, figure, mean, low, high. The models keep
    their order by name; a figure's interval is over the same resampled problems for all models.
    """
    names = figure_names(problems["samples"][0])
    rows = []
    for task, difficulty, group in _groups(problems):
        models = group["model"].unique().sort().to_list()
        values = np.hstack([group.filter(pl.col("model") == model).select(names).to_numpy() for model in models])
        labels = [(model, name) for model in models for name in names]
        for (model, name), interval in zip(labels, mean_intervals(values, seed), strict=True):
            rows.append((model, task, difficulty, len(values), name, interval.mean, interval.low, interval.high))
    columns = ["model", "task", "difficulty", "problems", "figure", "mean", "low", "high"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def _groups(problems: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """All problems, each task's, and each difficulty's of a task."""
    yield "", "", problems
    for task in problems["task"].unique().sort():
        of_task = problems.filter(pl.col("task") == task)
        yield task, "", of_task
        for label, level in difficulty_levels(of_task["difficulty"]):
            yield task, label, of_task.filter(level)


def difficulty_levels(difficulties: pl.Series) -> Iterator[tuple[str, pl.Series]]:
    """The levels of a task's difficulty in rising order: a label, and which of the rows are in it."""
    values = difficulties.drop_nulls().unique().sort().to_numpy()
    if len(values) <= BINS:
        for value in values:
            yield difficulty_name(value), (difficulties == value).fill_null(False)
        return
    edges = np.unique(np.quantile(difficulties.drop_nulls().to_numpy(), np.linspace(0, 1, BINS + 1), method="nearest"))
    for low, high in pairwise(edges):
        last = high == edges[-1]
        inside = difficulties.is_between(low, high, closed="both" if last else "left").fill_null(False)
        yield f"{difficulty_name(low)} to {'' if last else 'below '}{difficulty_name(high)}", inside


def overall(measured: pl.DataFrame, model: str) -> dict[str, Interval]:
    """A model's figures over all problems."""
    rows = measured.filter((pl.col("model") == model) & (pl.col("task") == ""))
    return {row["figure"]: Interval(row["mean"], row["low"], row["high"]) for row in rows.iter_rows(named=True)}


def with_bounds(name: str, interval: Interval) -> dict[str, float]:
    """A figure and its interval's ends, as metrics.json names them."""
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
