"""Which release suits this machine: a task of the flow, as it belongs to a machine and not to the stage's inputs.

It measures what it has not measured before (pipeline/planning/), so an unchanged release costs nothing again.
"""

from dataclasses import replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.attempts import RETRY_DELAY, attempt, may_pass
from flows.report import Outcome
from pipeline.planning.record import NAME, read_plan
from pipeline.planning.table import chosen_line


@task(task_run_name="plan", cache_policy=NO_CACHE, retry_delay_seconds=RETRY_DELAY, retry_condition_fn=may_pass)
def plan(root: Path, timeout: float) -> Outcome:
    """Make the project's plan, in at most `timeout` seconds. Raises StageFailedError, also where nothing fits."""
    outcome = attempt(NAME, ["pipeline.planning"], root, timeout)
    made = read_plan(root)
    assert made is not None
    return outcome if made["measured"] else replace(outcome, state="fresh")


def chosen(root: Path) -> str:
    """One line for the reader."""
    made = read_plan(root)
    return "no release is chosen for this machine" if made is None else f"{chosen_line(made)} (`r1flow plan`)"
