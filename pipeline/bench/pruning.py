"""What pruning costs, by how many experts are left: variants of the teacher with and without training after the cut.

The deployment stage shows the curve without training, which costs seconds; this one trains a model for each point.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.job import PARAMS_FILE, Job, artifacts
from pipeline.model.checkpoint import load_model
from pipeline.model.checkpoint_files import read_config
from pipeline.model.config import ModelConfig
from pipeline.model.pruning import require_prunable
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Variant, load_params
from pipeline.records import Problem, Sample, Trace, read_table
from pipeline.sizing.variants import FIGURE, Model, Workshop

TEACHER = "general_rl"


def run(root: Path, experts: Sequence[int]) -> dict[str, str]:
    """Experts left → pass@1 and what it is more than the teacher's, with intervals, untrained and trained.

    Trained as the first of params.deployment.variants that recovers. Raises InputError where none does, or the
    teacher cannot be left with so many experts.
    """
    params = load_params(root / PARAMS_FILE)
    recipes = [variant.recover for variant in params.deployment.variants.values() if variant.recover is not None]
    if not recipes:
        raise InputError("deployment.variants: none has recover: must have one, whose training is measured")
    folder = artifacts(root, TEACHER) / "model"
    for count in experts:
        require_prunable(ModelConfig.from_hf(read_config(folder)).mixture, count, "--experts")
    samples = read_table(artifacts(root, "evaluation") / "samples.parquet", Sample)
    teacher = Model(TEACHER, lambda: load_model(folder), samples, TEACHER)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job("bench", Path(scratch), "pruning", _nothing, _nothing)
        shop = Workshop(
            load_tokenizer(folder),
            read_table(artifacts(root, "curation") / "problems.parquet", Problem),
            read_table(artifacts(root, "rejection_sampling") / "traces.parquet", Trace),
            params.evaluation,
            params.deployment.sizing,
            params.seed,
            job,
        )
        profile, _ = shop.profile(teacher.load())
        found = {}
        for count in experts:
            for recover in (None, recipes[0]):
                name = f"{count}-{'cut' if recover is None else 'trained'}"
                made = shop.make(name, Variant(of=TEACHER, experts=count, recover=recover), teacher, profile)
                over = made.evaluation[f"over_{TEACHER}"]
                found[name] = f"{made.evaluation[FIGURE]}  over the teacher {over}"
    return found


def _nothing(*_: Any) -> None:
    pass
