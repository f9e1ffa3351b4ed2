"""general_sft: from the base model again, on the set that rejection sampling made (DeepSeek-R1, Dev3)."""

from pipeline.job import Job
from pipeline.params import Params
from pipeline.records import Problem, Trace, read_table
from pipeline.training.fine_tuning import fine_tune


def run(params: Params, job: Job) -> dict[str, float]:
    base = job.input("base", "model")
    problems = read_table(job.input("curation", "problems.parquet"), Problem)
    traces = read_table(job.input("rejection_sampling", "traces.parquet"), Trace)
    return fine_tune(base, problems, traces, params.general_sft.train, params.distributed, seed=params.seed, job=job)
