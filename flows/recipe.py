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
from prefect.client.schemas.objects import State as PrefectState
from prefect.client.schemas.objects import TaskRun
from prefect.tasks import Task
from rich.console import Console

from flows.dag import read_dag
from flows.local import environment
from flows.page import publish
from flows.report import Outcome, run_table
from flows.supervise import TIMED_OUT, run
from pipeline.errors import EXIT_BUDGET, EXIT_BUG, EXIT_GATE, EXIT_HEALTH, EXIT_INPUT, InputError
from pipeline.job import PARAMS_FILE, project_root
from pipeline.params import load_params
from pipeline.process import exit_on_signals
from pipeline.state import read_state

RETRY_DELAY = 5.0  # seconds


class StageFailedError(Exception):
    """A stage did not end well. `exit_code` is the stage's own, not DVC's."""

    def __init__(self, stage: str, exit_code: int, reason: str, seconds: float) -> None:
        super().__init__(f"{stage}: {reason}")
        self.exit_code = exit_code
        self.outcome = Outcome(stage, "failed", seconds)


def may_pass(task: Task, task_run: TaskRun, state: PrefectState) -> bool:
    """Whether another try may help: not with a wrong input, a failed gate, a sick run or a spent budget."""
    error = state.data
    final = (EXIT_INPUT, EXIT_GATE, EXIT_HEALTH, EXIT_BUDGET)
    return not (isinstance(error, StageFailedError) and error.exit_code in final)


@task(task_run_name="{stage}", cache_policy=NO_CACHE, retry_delay_seconds=RETRY_DELAY, retry_condition_fn=may_pass)
def run_stage(stage: str, root: Path, timeout: float) -> Outcome:
    """Bring one stage up to date, in at most `timeout` seconds. Raises StageFailedError."""
    before = read_state(root, stage)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    status = run(command, cwd=root, env=environment(root), timeout=timeout)
    attempt = read_state(root, stage)
    if status == 0:
        return Outcome(stage, "fresh") if attempt in (before, None) else Outcome(stage, "ran", attempt.seconds)
    exit_code, seconds = EXIT_BUG, 0.0 if attempt in (before, None) else attempt.seconds
    if status == TIMED_OUT:
        reason = f"not done after {timeout:.0f} s (machine.stage_timeout_hours)"
    elif attempt in (before, None):
        reason = f"`{' '.join(command[1:])}` ended with {status} before the stage ran"
    elif attempt.exit_code is None:
        reason = f"killed (process {attempt.pid})"
    elif attempt.exit_code == 0:
        reason = "done, but DVC did not take its outputs"
    else:
        exit_code, reason = attempt.exit_code, attempt.error
    raise StageFailedError(stage, exit_code, reason, seconds)


@flow(name="recipe")
def recipe(root: Path, until: str | None = None) -> None:
    """Bring the project at `root` up to date, as far as the stage `until`, and write its page.

    Raises StageFailedError, InputError.
    """
    machine = load_params(root / PARAMS_FILE).machine
    run_task = run_stage.with_options(retries=machine.retries)
    stages = read_dag(root).until(until)
    outcomes: list[Outcome] = []
    ended = False  # by itself; a run that is stopped from outside is to be gone soon
    try:
        for stage in stages:
            outcomes.append(Outcome(stage, "stopped"))  # unless it comes to an end
            outcomes[-1] = run_task(stage, root, machine.stage_timeout_hours * 3600)
        ended = True
    except StageFailedError as error:
        outcomes[-1] = error.outcome
        ended = True
        raise
    finally:
        missing = [Outcome(stage, "not reached") for stage in stages[len(outcomes) :]]
        Console().print(run_table(root, [*outcomes, *missing]))
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
