"""`python -m pipeline STAGE`: run one stage. dvc.yaml calls exactly this.

Exit status: 0, 2 for a mistake in what came from outside, 3 for a failed gate, 4 for a training run that its health
stopped, 5 for a budget that would be exceeded, 128 + n after signal n, 1 (and a traceback) for a bug.
"""

import importlib
import os
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import EXIT_INPUT

if find_spec("ruamel") is None:  # dvc.yaml says `python`, which is the user's own where `dvc` was called by its path
    print(f"{sys.executable}: r1flow is not installed in it: `source .venv/bin/activate` first", file=sys.stderr)
    sys.exit(EXIT_INPUT)

from pipeline.cost import Account
from pipeline.curves import CURVES, Curves
from pipeline.errors import EXPECTED, InputError, exit_code
from pipeline.files import write_json
from pipeline.job import (
    MEMBER,
    PARAMS_FILE,
    Job,
    Log,
    at,
    identity,
    outputs,
    project_root,
    require_inputs,
    require_stage,
)
from pipeline.mirror import mirrored
from pipeline.model.planned import require_models
from pipeline.params import Distributed, Params, load_params
from pipeline.process import (
    die_with_parent,
    end_rank,
    exit_on_signals,
    importing,
    is_rank,
    keep_freed_memory,
    rank,
    spin_briefly,
)
from pipeline.ranks import first_node, launch, let_the_first_speak, wanted
from pipeline.state import Attempt
from pipeline.tracking import Description, Tracker


def main(arguments: Sequence[str]) -> int:
    die_with_parent()
    if rank() == 0:  # the others write nothing that a signal could cut short
        exit_on_signals()
    spin_briefly()
    keep_freed_memory()
    try:
        if len(arguments) != 1:
            raise InputError("usage: python -m pipeline STAGE")
        stage, root = arguments[0], project_root(Path.cwd())
        if rank() > 0:
            follow(stage, root)
        elif not is_rank() and (params := wanted(stage, root)):
            return run_ranks(stage, root, params)
        else:
            run_stage(stage, root)
    except EXPECTED as error:
        if rank() > 0:
            let_the_first_speak()
        print(error, file=sys.stderr)
        return exit_code(error)
    return 0


def run_stage(stage: str, root: Path) -> None:
    """Run one stage in the project at `root`; its figures, in the stage's own order, become metrics.json."""
    require_stage(root, stage)
    with Attempt(root, stage) as attempt, ExitStack() as around:
        require_inputs(root, stage)
        params, work = load_params(root / PARAMS_FILE), identity(root, stage)
        require_models(params)
        if not is_rank():  # of ranks, who starts them keeps the copy
            around.enter_context(mirrored(params.machine.store, root, stage, work.key))
        attempt.update(key=work.key)
        ranks = params.distributed if is_rank() else Distributed()
        account = Account(root, stage, work.key, params.machine, ranks)
        account.require_budget()
        settle(params)
        module = _module(stage)
        values = params.model_dump(mode="json", by_alias=True)
        data = {path: digest for path, digest in work.deps.items() if path.startswith("artifacts/")}
        described = Description(stage, work.key, {name: at(values, name) for name in work.params}, data)
        with Tracker(params.tracking, root, described) as tracker:
            job = Job(stage, root, work.key, tracker.log, tracker.table, account, work.deps)
            curves = Curves(job.scratch) if job.output(CURVES) in outputs(root, stage) else None
            if curves:
                job = replace(job, log=both(tracker.log, curves.note))
            try:
                metrics = module.run(params, job)
                if curves:
                    curves.write(job.output(CURVES))
                write_json(job.output("metrics.json"), metrics, sort=False)
                tracker.log({f"final/{name}": value for name, value in metrics.items()}, step=0)
                attempt.update(metrics=metrics, mlflow_run=tracker.run_id)
            finally:  # a stage that fails has cost something too
                spent = account.close().figures()
                attempt.update(cost=spent)
                tracker.log({f"final/cost/{name}": value for name, value in spent.items()}, step=0)


def run_ranks(stage: str, root: Path, params: Params) -> int:
    """Run one stage in several processes, of which the first keeps its state. Returns their exit status."""
    store = params.machine.store if first_node() else None  # the nodes share the folder
    with ExitStack() as around:
        try:
            around.enter_context(mirrored(store, root, stage, identity(root, stage).key))
        except EXPECTED:
            with Attempt(root, stage):  # no rank is there yet that could tell
                raise
        status = launch(stage, root, params)
        if status > 128:  # by a signal: what is left to do has little time
            raise SystemExit(status)
    return status


def follow(stage: str, root: Path) -> None:
    """Take part in a stage as a rank that is not the first: nothing is told, nothing is written but checkpoints."""
    params, work = load_params(root / PARAMS_FILE), identity(root, stage)
    settle(params)
    job = Job(stage, root, work.key, lambda figures, step: None, lambda name, step, rows: None, leads=False)
    _module(stage).run(params, job)


def _module(stage: str) -> Any:
    with importing():
        return importlib.import_module(f"pipeline.stages.{stage.partition(MEMBER)[0]}")


def both(first: Log, second: Log) -> Log:
    def log(figures: Mapping[str, float], step: int) -> None:
        first(figures, step)
        second(figures, step)

    return log


def settle(params: Params) -> None:
    """Set what has to be set before the numeric libraries are imported, and the seeds of what has a global one."""
    if params.machine.threads is not None and not is_rank():  # ranks have their part of them
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), str(params.machine.threads))
    if params.machine.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only with this
    random.seed(params.seed)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if is_rank():
        end_rank(status)
    sys.exit(status)
