"""The recipe as a Prefect flow: the stages of dvc.yaml, each one a task that lets DVC do it.

DVC decides whether a stage has to run; Prefect decides when, and how often it is tried. So tasks cache nothing and
hand over nothing but names. Each stage runs under a supervisor (flows/supervise.py), which also keeps its time limit:
Prefect's own limit ends the task's function and would leave the stage's processes behind.

Up to `machine.parallel` stages run at a time and share the cores. flows/on_workers.py sends them to other machines.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from rich.console import Console

from flows import artifacts
from flows.attempts import RETRY_DELAY, StageFailedError, judged, may_pass
from flows.commands import Pool
from flows.dag import Dag, read_dag
from flows.local import shared
from flows.page import publish
from flows.planning import chosen, plan
from flows.registration import register
from flows.releases import releases_table
from flows.report import Outcome, run_table
from flows.schedule import run_in_order
from flows.server import own_server
from flows.supervise import stop_all
from flows.travel import sort_lock
from pipeline.errors import EXIT_INPUT, InputError
from pipeline.job import PARAMS_FILE, project_root
from pipeline.params import load_params
from pipeline.planning.record import NAME as PLAN
from pipeline.process import exit_on_signals
from pipeline.release.record import REGISTRATION
from pipeline.release.record import STAGE as DEPLOYMENT
from pipeline.tracking import recorder

AFTER = {REGISTRATION: register, PLAN: plan}
"""Tasks that follow the deployment stage, in this order: side effects, which are no stages."""


@task(task_run_name="{stage}", cache_policy=NO_CACHE, retry_delay_seconds=RETRY_DELAY, retry_condition_fn=may_pass)
def run_stage(dvc: Pool, stage: str, root: Path, timeout: float, beside: int = 0) -> Outcome:
    """Bring one stage up to date, in at most `timeout` seconds, while up to `beside` others run.

    Raises StageFailedError.
    """
    command = ("repro", "--single-item", stage)
    outcome = judged(stage, root, timeout, lambda: dvc.run(command, timeout, shared(beside)))
    artifacts.stage(root, outcome)
    return outcome


@flow(name="recipe")
def recipe(root: Path, until: str | None = None) -> None:
    """Bring the project at `root` up to date, as far as the stage `until`, register its releases, plan, write the page.

    Raises StageFailedError, InputError.
    """
    dag = read_dag(root)
    stages = dag.until(until)
    parts = [*stages, *AFTER] if DEPLOYMENT in stages else stages
    outcomes: dict[str, Outcome] = {}
    ended = False  # by itself; a run that is stopped from outside is to be gone soon
    try:
        bring_up_to_date(root, dag, stages, outcomes)
        if DEPLOYMENT in stages:
            follow_up(root, outcomes)
        ended = True
    except StageFailedError:
        ended = True
        raise
    finally:
        stop_all()
        rows = [outcomes.get(part, Outcome(part, "not reached")) for part in parts]
        Console().print(run_table(root, rows))
        artifacts.stages(rows)
        done = {part for part, outcome in outcomes.items() if outcome.state in ("ran", "fresh")}
        if REGISTRATION in done:
            Console().print(releases_table(root))
        if PLAN in done:
            print(chosen(root))
        if ended:
            print(publish(root), flush=True)


def bring_up_to_date(root: Path, dag: Dag, stages: Sequence[str], outcomes: dict[str, Outcome]) -> None:
    """Run `stages` here and note how each came out. Raises the first StageFailedError once nothing runs any more."""
    machine = load_params(root / PARAMS_FILE).machine
    run_task = run_stage.with_options(retries=machine.retries)

    with Pool(root) as dvc:

        def begin(stage: str, beside: int) -> PrefectFuture[Outcome]:
            return run_task.submit(dvc, stage, root, machine.stage_timeout_hours * 3600, beside)

        run_in_order(dag, stages, outcomes, begin, machine.parallel)
    sort_lock(root, dag.order)


def follow_up(root: Path, outcomes: dict[str, Outcome]) -> None:
    """What follows the deployment stage, one after the other, and how it came out. Raises StageFailedError."""
    machine = load_params(root / PARAMS_FILE).machine
    for name, task_of in AFTER.items():
        outcomes[name] = Outcome(name, "stopped")  # unless it comes to an end
        try:
            outcomes[name] = task_of.with_options(retries=machine.retries)(root, machine.stage_timeout_hours * 3600)
        except StageFailedError as error:
            outcomes[name] = error.outcome
            raise


def main(arguments: Sequence[str]) -> int:
    """Run the flow here and now. Returns the exit status of the stage that failed, or 0."""
    parser = argparse.ArgumentParser(prog="python -m flows.recipe", description=recipe.description)
    parser.add_argument("--until", metavar="STAGE")
    options = parser.parse_args(arguments)
    exit_on_signals()
    try:
        root = project_root(Path.cwd())
        read_dag(root).until(options.until)  # a mistyped stage is refused before Prefect starts
        with recorder(), own_server():
            recipe(root, options.until)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_INPUT
    except StageFailedError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
