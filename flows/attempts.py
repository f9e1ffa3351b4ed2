"""One try at a part of a run, in processes under a supervisor: how it ended, and whether another one may help."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from prefect.client.schemas.objects import State as PrefectState
from prefect.client.schemas.objects import TaskRun
from prefect.tasks import Task, exponential_backoff

from flows.local import environment
from flows.report import Outcome
from flows.supervise import STOPPED, TIMED_OUT, run
from pipeline.errors import EXIT_BUDGET, EXIT_BUG, EXIT_GATE, EXIT_HEALTH, EXIT_INPUT
from pipeline.state import read_state

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAY = 5.0  # seconds


class StageFailedError(Exception):
    """A stage did not end well. `exit_code` is the stage's own, not DVC's."""

    def __init__(self, stage: str, exit_code: int, reason: str, seconds: float) -> None:
        super().__init__(f"{stage}: {reason}")
        self.exit_code, self.reason = exit_code, reason
        self.outcome = Outcome(stage, "failed", seconds)


def may_pass(task: Task, task_run: TaskRun, state: PrefectState) -> bool:
    """Whether another try may help: not with a wrong input, a failed gate, a sick run, a spent budget, a stop."""
    error = state.data
    final = (EXIT_INPUT, EXIT_GATE, EXIT_HEALTH, EXIT_BUDGET, STOPPED)
    return not (isinstance(error, StageFailedError) and error.exit_code in final)


def tried(task: Task[P, R], retries: int) -> Task[P, R]:
    """The task, tried again up to `retries` times, with growing pauses."""
    # Prefect works the pauses out here, from the number of retries.
    return task.with_options(retries=retries, retry_delay_seconds=exponential_backoff(RETRY_DELAY))


def attempt(
    stage: str, module: Sequence[str], root: Path, timeout: float, variables: Mapping[str, str] | None = None
) -> Outcome:
    """Run `python -m MODULE…`, which keeps the state of `stage`, in at most `timeout` seconds.

    Raises StageFailedError with the reason that the state gives, which is better known there than to DVC.
    """
    command, settings = [sys.executable, "-m", *module], {**environment(root), **(variables or {})}
    return judged(stage, root, timeout, lambda: run(command, cwd=root, env=settings, timeout=timeout))


def judged(stage: str, root: Path, timeout: float, call: Callable[[], int]) -> Outcome:
    """How a stage came out of `call`, which runs it in at most `timeout` seconds and returns an exit status.

    Raises StageFailedError.
    """
    before = read_state(root, stage)
    status = call()
    last = read_state(root, stage)
    ran = None if last == before else last
    if status == 0:
        return Outcome(stage, "ran", ran.seconds) if ran else Outcome(stage, "fresh")
    exit_code, seconds = EXIT_BUG, ran.seconds if ran else 0.0
    if status == TIMED_OUT:
        reason = f"not done after {timeout:.0f} s (machine.stage_timeout_hours)"
    elif status == STOPPED:
        exit_code, reason = STOPPED, "stopped"
    elif ran is None:
        reason = f"ended with {status} before the stage ran"
    elif ran.exit_code is None:
        reason = f"killed (process {ran.pid})"
    elif ran.exit_code == 0:
        reason = "done, but DVC did not take its outputs"
    else:
        exit_code, reason = ran.exit_code, ran.error
    raise StageFailedError(stage, exit_code, reason, seconds)
