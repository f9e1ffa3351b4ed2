"""The results of an evaluation as what is written: metrics.json, summary.json, and tables for `dvc plots`.

All of it is a function of the judged samples, the sizes of the models and the seed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from pipeline.evaluation.evaluate import Evaluated
from pipeline.evaluation.metrics import measure, overall, per_problem, with_bounds
from pipeline.evaluation.models import Entry
from pipeline.evaluation.paired import Comparison, compare
from pipeline.evaluation.preference import mean_preference, win_rate
from pipeline.files import atomic_file, write_json
from pipeline.records import write_table

COMPARISON = {
    "model": pl.String(),
    "reference": pl.String(),
    "difference": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "p_value": pl.Float64(),
    "better": pl.Int64(),
    "worse": pl.Int64(),
    "problems": pl.Int64(),
}


@dataclass(frozen=True, slots=True)
class Results:
    problems: pl.DataFrame  # metrics.per_problem
    metrics: dict[str, float]  # every figure by a dotted name, the newest model's pass@1 first
    summary: dict[str, dict[str, float]]  # the few figures of each model that `dvc metrics` shows
    tables: dict[str, pl.DataFrame]  # by file name

    def write(self, samples: pl.DataFrame, folder: Path) -> None:
        """Write everything but metrics.json, which is what the stage returns."""
        write_table(samples, folder / "samples.parquet")
        write_json(folder / "summary.json", self.summary, sort=False)
        for name, table in self.tables.items():
            with atomic_file(folder / name) as temporary:
                table.write_csv(temporary)


def results(evaluated: Evaluated, seed: int) -> Results:
    """Every figure of the models of a run."""
    problems = per_problem(evaluated.samples)
    measured = measure(problems, seed)
    compared = {
        entry.name: [compare(problems, entry.name, reference, seed) for reference in entry.references]
        for entry in evaluated.models
    }
    metrics: dict[str, float] = {}
    for entry in evaluated.models:
        figures = _figures(entry, evaluated, measured, compared[entry.name], seed)
        metrics |= {f"{entry.name}.{name}": value for name, value in figures.items()}
    samples = problems["samples"][0]
    shown = ("pass_at_1", f"cons_at_{samples}", "truncated", "tokens", "activated_parameters")
    summary = {entry.name: {name: metrics[f"{entry.name}.{name}"] for name in shown} for entry in evaluated.models}
    metrics["problems"] = problems["problem_id"].n_unique()
    return Results(problems, metrics, summary, _tables(evaluated, measured, compared))


def _figures(
    entry: Entry, evaluated: Evaluated, measured: pl.DataFrame, compared: Sequence[Comparison], seed: int
) -> dict[str, float]:
    """One model's figures. `over_X`: its pass@1 minus that of X, `over_X_p` the test's p-value."""
    figures: dict[str, float] = {}
    for name, interval in overall(measured, entry.name).items():
        figures |= with_bounds(name, interval)
    for comparison in compared:
        figures |= with_bounds(f"over_{comparison.reference}", comparison.difference)
        figures[f"over_{comparison.reference}_p"] = comparison.p_value
    if (preferred := mean_preference(evaluated.samples, entry.name, seed)) is not None:
        figures |= with_bounds("preference", preferred)
    for reference in entry.references:
        if (wins := win_rate(evaluated.samples, entry.name, reference, seed)) is not None:
            figures |= with_bounds(f"wins_over_{reference}", wins)
    size = evaluated.sizes[entry.name]
    figures |= {"parameters": size.total, "activated_parameters": size.activated}
    of_tasks = measured.filter((pl.col("model") == entry.name) & (pl.col("task") != "") & (pl.col("difficulty") == ""))
    for row in of_tasks.filter(pl.col("figure") == "pass_at_1").iter_rows(named=True):
        name = f"{row['task']}.pass_at_1"
        figures |= {name: row["mean"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    return figures


def _tables(
    evaluated: Evaluated, measured: pl.DataFrame, compared: dict[str, list[Comparison]]
) -> dict[str, pl.DataFrame]:
    """`figures.csv` has everything, the others what one picture shows."""
    order = pl.Enum([entry.name for entry in evaluated.models])
    measured = measured.with_columns(pl.col("model").cast(order)).sort("model", maintain_order=True)
    whole = measured.filter(pl.col("task") == "")
    sizes = pl.DataFrame(
        [(name, size.total, size.activated) for name, size in evaluated.sizes.items()],
        schema={"model": order, "parameters": pl.Int64, "activated_parameters": pl.Int64},
        orient="row",
    )
    bounds = [pl.col("mean").alias("pass_at_1"), pl.col("low"), pl.col("high")]
    models = whole.filter(pl.col("figure") == "pass_at_1").select("model", *bounds, "problems")
    passes = whole.filter(pl.col("figure").str.starts_with("pass_at_"))
    levels = measured.filter((pl.col("figure") == "pass_at_1") & (pl.col("difficulty") != ""))
    comparisons = [
        {**asdict(one), **asdict(one.difference), "difference": one.difference.mean}
        for of_model in compared.values()
        for one in of_model
    ]
    return {
        "figures.csv": measured,
        "comparisons.csv": pl.DataFrame(comparisons, schema=COMPARISON),
        "models.csv": models.join(sizes, on="model", maintain_order="left"),
        "pass_at_k.csv": passes.select(
            "model",
            pl.col("figure").str.strip_prefix("pass_at_").cast(pl.Int64).alias("k"),
            pl.col("mean").alias("pass_at_k"),
            "low",
            "high",
        ),
        "difficulty.csv": levels.select("model", "task", "difficulty", *bounds, "problems"),
    }
