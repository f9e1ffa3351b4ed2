"""The arms of a study on the same held-out problems: per seed, and over all seeds.

Within a seed every arm is asked the problems that its control was: they are paired. Over the seeds the problems of all
of them stand side by side, each paired with the same problem of the same seed (seeds have other problems, too). So the
pooled interval says what other problems would do to the mean of these trainings. It does not say what other trainings
would do: for that the seeds' own differences stand beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.cost import Cost
from pipeline.evaluation.choice import choose
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.metrics import measure, overall, per_problem, with_bounds
from pipeline.evaluation.models import Entry
from pipeline.evaluation.paired import compare
from pipeline.files import digest, write_json
from pipeline.job import PARAMS_FILE, artifacts, at
from pipeline.params import Evaluation, load_params
from pipeline.records import Problem, Sample, read_table, write_table
from pipeline.rewards.versions import verifier_versions
from pipeline.studies.definition import Study, model_folder, workspace
from pipeline.studies.spent import spent, total

SHOWN = ("pass_at_1", "tokens", "truncated", "well_formed")


def results(root: Path, name: str, study: Study) -> dict[str, Any]:
    """Everything that is known of a study whose arms have all run; what was asked before is not asked again."""
    options = load_params(root / PARAMS_FILE).evaluation
    tables, sizes = [], {}
    for seed in study.seeds:
        problems = _problems(workspace(root, name, study.control, seed), options)
        for arm in study.arms:
            samples, sizes[arm] = _asked(
                workspace(root, name, arm, seed), arm, study.arms[arm].model, problems, options
            )
            tables.append(samples.with_columns(seed=pl.lit(seed), problem_id=f"{seed}/" + pl.col("problem_id")))
    asked = pl.concat(tables)
    own = {seed: _figures(asked.filter(pl.col("seed") == seed), study, seed) for seed in study.seeds}
    pooled = own[study.seeds[0]] if len(study.seeds) == 1 else _figures(asked, study, study.seeds[0])
    arms = {}
    for arm, definition in study.arms.items():
        costs = {seed: spent(root, workspace(root, name, arm, seed)) for seed in study.seeds}
        arms[arm] = {
            "model": definition.model,
            "params": definition.params,
            **sizes[arm],
            "pooled": pooled[arm],
            "seeds": {str(seed): own[seed][arm] for seed in study.seeds},
            "spent": {str(seed): _spent(costs[seed]) for seed in study.seeds},
        }
    return {
        "study": name,
        "question": study.question,
        "control": study.control,
        "seeds": study.seeds,
        "problems": options.problems,
        "samples": options.samples,
        "sampling": options.sampling.model_dump(),
        "arms": arms,
    }


def _problems(folder: Path, options: Evaluation) -> pl.DataFrame:
    curated = read_table(artifacts(folder, "curation") / "problems.parquet", Problem)
    return choose(curated, options.problems, 0)


def _asked(
    folder: Path, arm: str, stage: str, problems: pl.DataFrame, options: Evaluation
) -> tuple[pl.DataFrame, Mapping[str, float]]:
    """An arm's judged samples, kept in its workspace with what they are of, and the size of its model."""
    seed = load_params(folder / PARAMS_FILE).seed
    model = model_folder(folder, stage)
    asked = {
        "arm": arm,
        "model": digest(model),
        "problems": problems["id"].to_list(),
        "options": options.model_dump(mode="json", include={"samples", "language", "sampling"}),
        "verifiers": verifier_versions(),
    }
    kept, note = folder / "runs" / "samples.parquet", folder / "runs" / "samples.json"
    if note.is_file() and at(noted := json.loads(note.read_text(encoding="utf-8")), "asked") == asked:
        return read_table(kept, Sample), noted["size"]
    evaluated = evaluate([Entry(arm, model, ())], problems, options, seed, None)
    size = asdict(evaluated.sizes[arm])
    note.unlink(missing_ok=True)  # of other samples
    write_table(evaluated.samples, kept)
    write_json(note, {"asked": asked, "size": size})
    return evaluated.samples, size


def _figures(samples: pl.DataFrame, study: Study, seed: int) -> dict[str, dict[str, float]]:
    """Arm → its figures over all problems, and its pass@1 over that of the control."""
    problems = per_problem(samples)
    measured = measure(problems, seed)
    found: dict[str, dict[str, float]] = {}
    for arm in study.arms:
        intervals = overall(measured, arm)
        found[arm] = {}
        for name in SHOWN:
            found[arm] |= with_bounds(name, intervals[name])
        if arm != study.control:
            over = compare(problems, arm, study.control, seed)
            found[arm] |= with_bounds("over_control", over.difference)
            found[arm] |= {"p_value": over.p_value, "better": over.better, "worse": over.worse}
        found[arm]["problems"] = problems["problem_id"].n_unique()
    return found


def _spent(costs: dict[str, Cost | None]) -> dict[str, Any]:
    """By stage, of the arm's own stage alone and of the whole way to its model."""
    return {
        "stages": {stage: total([cost]) for stage, cost in costs.items()},
        "own": total(list(costs.values())[-1:]),
        "way": total(costs.values()),
        "currency": next((cost.currency for cost in costs.values() if cost), ""),
        "device": next((cost.device for cost in costs.values() if cost), ""),
    }
