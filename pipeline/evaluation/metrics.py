"""Figures of judged samples."""

import polars as pl

from pipeline.evaluation.intervals import mean_interval


def pass_at_1(samples: pl.DataFrame, seed: int) -> dict[str, float]:
    """pass@1 with its 95 % interval, over all problems and per task, of one model's samples.

    pass@1 is the mean over problems of the share of right samples (DeepSeek-R1, section 3: the mean over k samples).
    """
    shares = (
        samples.group_by("problem_id", maintain_order=True)
        .agg(pl.col("task").first(), right=(pl.col("verdict") == "right").mean())
        .sort("problem_id")
    )
    figures = _with_bounds("pass_at_1", shares["right"].to_list(), seed)
    for task in shares["task"].unique().sort():
        of_task = shares.filter(pl.col("task") == task)
        figures |= _with_bounds(f"{task}.pass_at_1", of_task["right"].to_list(), seed)
    return figures


def form(samples: pl.DataFrame) -> dict[str, float]:
    """How the completions look, right or wrong: share well formed, share cut by the limit, mean length in tokens."""
    return {
        "well_formed": _mean(samples["well_formed"]),
        "truncated": 1 - _mean(samples["finished"]),
        "tokens": _mean(samples["tokens"]),
    }


def _mean(column: pl.Series) -> float:
    return float(column.cast(pl.Float64).to_numpy().mean())


def _with_bounds(name: str, values: list[float], seed: int) -> dict[str, float]:
    interval = mean_interval(values, seed)
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
