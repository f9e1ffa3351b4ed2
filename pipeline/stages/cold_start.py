"""cold_start: teach the base model the shape of reasoning from a few hundred good traces (DeepSeek-R1, Dev1)."""

import random

from pipeline.job import Job
from pipeline.params import Params
from pipeline.records import Problem, Trace, read_table
from pipeline.training.fine_tuning import fine_tune


def run(params: Params, job: Job) -> dict[str, float]:
    options = params.cold_start
    base = job.input("base", "model")
    problems = read_table(job.input("curation", "problems.parquet"), Problem)
    traces = read_table(job.input("curation", "traces.parquet"), Trace)
    chosen = random.Random(params.seed).sample(range(len(traces)), min(options.examples, len(traces)))
    return fine_tune(base, problems, traces[chosen], options.train, params.distributed, seed=params.seed, job=job)
