"""The recipe as a Prefect flow: the stages of dvc.yaml in order, each one a task that lets DVC do it.

DVC decides whether a stage has to run; Prefect decides when, and how often it is tried. So tasks cache nothing and
hand over nothing but names. Each stage runs under a supervisor (flows/supervise.py), which also keeps its time limit:
Prefect's own limit ends the task's function and would leave the stage's processes behind.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from rich.console import Console

from flows.attempts import RETRY_DELAY, StageFailedError, attempt, may_pass
from flows.dag import read_dag
from flows.page import publish
from flows.planning import chosen, plan
from flows.registration import register
from flows.releases import releases_table
from flows.report import Outcome, run_table
from pipeline.errors import EXIT_INPUT, InputError
from pipeline.job import PARAMS_FILE, project_root
from pipeline.params import load_params
from pipeline.planning.record import NAME as PLAN
from pipeline.process import exit_on_signals
from pipeline.release.record import REGISTRATION
from pipeline.release.record import STAGE as DEPLOYMENT

AFTER = {REGISTRATION: register, PLAN: plan}
"""Tasks that follow the deployment stage, in this order: side effects, which are no stages."""


@task(task_run_name="{stage}", cache_policy=NO_CACHE, retry_delay_seconds=RETRY_DELAY, retry_condition_fn=may_pass)
def run_stage(stage: str, root: Path, timeout: float) -> Outcome:
    """Bring one stage up to date, in at most `timeout` seconds. Raises StageFailedError."""
    return attempt(stage, ["dvc", "--wait-for-lock", "repro", "--single-item", stage], root, timeout)


@flow(name="recipe")
def recipe(root: Path, until: str | None = None) -> None:
    """Bring the project at `root` up to date, as far as the stage `until`, register its releases, plan, write the page.

    Raises StageFailedError, InputError.
    """
    machine = load_params(root / PARAMS_FILE).machine
    timeout = machine.stage_timeout_hours * 3600
    run_task = run_stage.with_options(retries=machine.retries)
    after = {name: task.with_options(retries=machine.retries) for name, task in AFTER.items()}
    stages = read_dag(root).until(until)
    parts = (*stages, *after) if DEPLOYMENT in stages else stages
    outcomes: list[Outcome] = []
    ended = False  # by itself; a run that is stopped from outside is to be gone soon
    try:
        for part in parts:
            outcomes.append(Outcome(part, "stopped"))  # unless it comes to an end
            outcomes[-1] = after[part](root, timeout) if part in after else run_task(part, root, timeout)
        ended = True
    except StageFailedError as error:
        outcomes[-1] = error.outcome
        ended = True
        raise
    finally:
        missing = [Outcome(part, "not reached") for part in parts[len(outcomes) :]]
        Console().print(run_table(root, [*outcomes, *missing]))
        done = {outcome.stage for outcome in outcomes if outcome.state in ("ran", "fresh")}
        if REGISTRATION in done:
            Console().print(releases_table(root))
        if PLAN in done:
            print(chosen(root))
        if ended:
            print(publish(root), flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the flow here and now. Returns the exit status of the stage that failed, or 0."""
    parser = argparse.ArgumentParser(prog="python -m flows.recipe", description=recipe.description)
    parser.add_argument("--until", metavar="STAGE")
    options = parser.parse_args(arguments)
    exit_on_signals()
    try:
        root = project_root(Path.cwd())
        read_dag(root).until(options.until)  # a mistyped stage is refused before Prefect starts
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
