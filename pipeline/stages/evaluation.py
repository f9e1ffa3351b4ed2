"""evaluation: every model of the run on the held-out problems, and whether the models may pass.

The results take their place among the artifacts only after the gates have passed; those of a failed evaluation stay
under runs/, to be read. How long it took lies there too: outputs hold no times.
"""

import shutil

import polars as pl

from pipeline.errors import GateFailedError, InputError
from pipeline.evaluation.champion import read_champion
from pipeline.evaluation.choice import choose
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.gates import Gate, champion_gate, stage_gates
from pipeline.evaluation.models import find_models
from pipeline.evaluation.preference import find_preference
from pipeline.evaluation.results import results
from pipeline.files import atomic_folder, write_json
from pipeline.job import Job, read_stages
from pipeline.params import Params
from pipeline.records import Problem, read_table


def run(params: Params, job: Job) -> dict[str, float]:
    options, seed = params.evaluation, params.seed
    dependencies = read_stages(job.root)[job.stage]["deps"]
    models = find_models(job.root, dependencies, params.distillation.students)
    preference = find_preference(job.root, dependencies)
    curated = read_table(job.input("curation", "problems.parquet"), Problem)
    problems = choose(curated, options.problems, options.general)
    if problems.filter(pl.col("verifier") != "none").is_empty():
        raise InputError("evaluation: the curated data has no checkable problem in its evaluation split")
    champion = options.champion
    judged = None if champion is None else read_champion(champion, job.root, job.scratch)

    evaluated = evaluate(models, problems, options, seed, preference=preference, meter=job.meter)
    speeds = {name: speed.figures() for name, speed in evaluated.speeds.items()}
    write_json(job.runs / "speed.json", speeds, sort=False)
    job.log({f"{name}/{figure}": value for name, speed in speeds.items() for figure, value in speed.items()}, 0)

    found = results(evaluated, seed)
    candidate = job.runs / "candidate"
    with atomic_folder(candidate) as folder:
        found.write(evaluated.samples, folder)
    gates = stage_gates(models, found.problems, options.gates, seed)
    if champion is not None and judged is not None:
        gates.append(champion_gate(models, found.problems, champion, judged, seed))
    rejected = job.runs / "rejected"
    shutil.rmtree(rejected, ignore_errors=True)
    if not all(gate.passed for gate in gates):
        write_json(candidate / "metrics.json", found.metrics, sort=False)
        candidate.rename(rejected)
        raise GateFailedError(_message(gates, rejected))
    for file in sorted(candidate.iterdir()):
        job.output(file.name).parent.mkdir(parents=True, exist_ok=True)
        file.replace(job.output(file.name))
    candidate.rmdir()
    return found.metrics


def _message(gates: list[Gate], rejected: object) -> str:
    failed = [gate for gate in gates if not gate.passed]
    head = f"evaluation: {len(failed)} of {len(gates)} gates failed; samples and figures: {rejected}"
    return "\n".join([head, *(f"    {gate}" for gate in failed)])
