"""evaluation: every model of the run on the held-out problems."""

import polars as pl

from pipeline import chat
from pipeline.errors import InputError
from pipeline.evaluation.metrics import form, pass_at_1
from pipeline.evaluation.sampling import choose, judge
from pipeline.generation.work import generation_work
from pipeline.job import Job
from pipeline.model.checkpoint import load_model
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Params
from pipeline.records import Problem, read_table, write_table

MODELS = ("reasoning_rl", "cold_start", "base")  # the run's last model first: its figures head the table


def run(params: Params, job: Job) -> dict[str, float]:
    options = params.evaluation
    problems = choose(read_table(job.input("curation", "problems.parquet"), Problem), options.problems)
    if problems.is_empty():
        raise InputError("evaluation: the curated data has no checkable problem in its evaluation split")
    figures: dict[str, float] = {}
    tables = []
    for name in MODELS:
        folder = job.input(name, "model")
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        samples = judge(name, model, tokenizer, problems, options, params.seed)
        tables.append(samples)
        prompts = [chat.render_prompt(prompt, bos=tokenizer.bos_token or "") for prompt in problems["prompt"]]
        lengths = dict(samples.group_by("problem_id").agg("tokens").iter_rows())
        job.meter.count(generation_work(model, tokenizer, prompts, [lengths[problem] for problem in problems["id"]]))
        measured = pass_at_1(samples, params.seed) | form(samples)
        figures |= {f"{name}.{key}": value for key, value in measured.items()}
    write_table(pl.concat(tables), job.output("samples.parquet"))
    return figures | {"problems": len(problems)}
