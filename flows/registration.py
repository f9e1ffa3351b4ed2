"""The releases of a run become versions in MLflow's registry: a task of the flow, as it is no function of its inputs.

It may be tried again, stopped and run beside another one at any moment (pipeline/tracking/registry.py).
"""

from dataclasses import replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.attempts import RETRY_DELAY, attempt, may_pass
from flows.releases import read_registered
from flows.report import Outcome
from pipeline.release.record import REGISTRATION


@task(task_run_name="register", cache_policy=NO_CACHE, retry_delay_seconds=RETRY_DELAY, retry_condition_fn=may_pass)
def register(root: Path, timeout: float) -> Outcome:
    """Register the project's releases, in at most `timeout` seconds. Raises StageFailedError."""
    outcome = attempt(REGISTRATION, ["pipeline.release"], root, timeout)
    return outcome if any(version.new for version in read_registered(root)) else replace(outcome, state="fresh")
