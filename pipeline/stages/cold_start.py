"""cold_start: teach the base model the shape of reasoning from a few hundred good traces (DeepSeek-R1, Dev1)."""

import random

from pipeline.files import atomic_folder
from pipeline.job import Job
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.tokenizer import load_tokenizer, save_tokenizer
from pipeline.params import Params
from pipeline.records import Problem, Trace, read_table
from pipeline.training.examples import worked_examples
from pipeline.training.loop import train


def run(params: Params, job: Job) -> dict[str, float]:
    base = job.input("base", "model")
    model, tokenizer = load_model(base), load_tokenizer(base)
    problems = read_table(job.input("curation", "problems.parquet"), Problem)
    traces = read_table(job.input("curation", "traces.parquet"), Trace)
    chosen = random.Random(params.seed).sample(range(len(traces)), min(params.cold_start.examples, len(traces)))
    examples = worked_examples(tokenizer, problems, traces[chosen])
    summary = train(
        model,
        examples,
        params.cold_start.train,
        seed=params.seed,
        scratch=job.scratch,
        log=job.log,
        meter=job.meter,
        title="cold_start: SFT",
    )
    with atomic_folder(job.output("model")) as folder:
        save_model(model, folder)
        save_tokenizer(tokenizer, folder)
    return {"loss": summary.loss, "tokens": summary.tokens, "examples": len(examples), **model.size().figures()}
