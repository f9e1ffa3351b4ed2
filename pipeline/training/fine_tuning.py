"""Supervised fine-tuning on traces: what the cold start, the general set and distillation have in common."""

from pathlib import Path

import polars as pl

from pipeline.files import atomic_folder
from pipeline.job import Job
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.device import stage_device
from pipeline.model.tokenizer import load_tokenizer, save_tokenizer
from pipeline.params import Distributed, Training
from pipeline.training.examples import worked_examples
from pipeline.training.loop import train
from pipeline.training.memory import prepare


def fine_tune(
    start: Path,
    problems: pl.DataFrame,
    traces: pl.DataFrame,
    options: Training,
    distributed: Distributed,
    *,
    seed: int,
    job: Job,
) -> dict[str, float]:
    """Train the checkpoint in `start` on `traces` of `problems` (tables of records); the job's `model` is the result.

    Returns the job's metrics.
    """
    model, tokenizer = prepare(load_model(start, device=stage_device()), options, seed), load_tokenizer(start)
    examples = worked_examples(tokenizer, problems, traces, model.config.max_position_embeddings)
    summary = train(
        model,
        examples,
        options,
        seed=seed,
        scratch=job.scratch,
        log=job.log,
        meter=job.meter,
        title=f"{job.stage}: SFT",
        distributed=distributed,
    )
    with atomic_folder(job.output("model")) as folder:
        save_model(model, folder)
        save_tokenizer(tokenizer, folder)
    return {"loss": summary.loss, "tokens": summary.tokens, "examples": len(examples), **model.size().figures()}
