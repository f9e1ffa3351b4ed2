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
from pathlib import Path

from pipeline.cost import Account
from pipeline.curves import CURVES, Curves
from pipeline.errors import EXPECTED, InputError, exit_code
from pipeline.files import write_json
from pipeline.job import MEMBER, PARAMS_FILE, Job, Log, at, identity, outputs, project_root, require_stage
from pipeline.mirror import mirrored
from pipeline.params import Params, load_params
from pipeline.process import die_with_parent, exit_on_signals, keep_freed_memory, spin_briefly
from pipeline.state import Attempt
from pipeline.tracking import Description, Tracker


def main(arguments: Sequence[str]) -> int:
    die_with_parent()
    exit_on_signals()
    spin_briefly()
    keep_freed_memory()
    try:
        if len(arguments) != 1:
            raise InputError("usage: python -m pipeline STAGE")
        run_stage(arguments[0], project_root(Path.cwd()))
    except EXPECTED as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    return 0


def run_stage(stage: str, root: Path) -> None:
    """Run one stage in the project at `root`; its figures, in the stage's own order, become metrics.json."""
    require_stage(root, stage)
    with Attempt(root, stage) as attempt, ExitStack() as around:
        params, work = load_params(root / PARAMS_FILE), identity(root, stage)
        around.enter_context(mirrored(params.machine.store, root, stage, work.key))
        attempt.update(key=work.key)
        account = Account(root, stage, work.key, params.machine)
        account.require_budget()
        settle(params)
        module = importlib.import_module(f"pipeline.stages.{stage.partition(MEMBER)[0]}")
        values = params.model_dump(mode="json", by_alias=True)
        data = {path: digest for path, digest in work.deps.items() if path.startswith("artifacts/")}
        described = Description(stage, work.key, {name: at(values, name) for name in work.params}, data)
        with Tracker(params.tracking, root, described) as tracker:
            job = Job(stage, root, work.key, tracker.log, tracker.table, account, work.deps)
            if has_curves := job.output(CURVES) in outputs(root, stage):
                curves = Curves(job.scratch)
                job = replace(job, log=both(tracker.log, curves.note))
            try:
                metrics = module.run(params, job)
                if has_curves:
                    curves.write(job.output(CURVES))
                write_json(job.output("metrics.json"), metrics, sort=False)
                tracker.log({f"final/{name}": value for name, value in metrics.items()}, step=0)
                attempt.update(metrics=metrics, mlflow_run=tracker.run_id)
            finally:  # a stage that fails has cost something too
                spent = account.close().figures()
                attempt.update(cost=spent)
                tracker.log({f"final/cost/{name}": value for name, value in spent.items()}, step=0)


def both(first: Log, second: Log) -> Log:
    def log(figures: Mapping[str, float], step: int) -> None:
        first(figures, step)
        second(figures, step)

    return log


def settle(params: Params) -> None:
    """Set what has to be set before the numeric libraries are imported, and the seeds of what has a global one."""
    if params.machine.threads is not None:
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), str(params.machine.threads))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only with this
    random.seed(params.seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
