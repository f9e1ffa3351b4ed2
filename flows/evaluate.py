"""The nightly flow: does the champion still answer as it did when it was registered?"""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import artifacts
from flows.attempts import attempt, may_pass, tried
from flows.checkout import project_clone, removed_afterwards
from flows.curation import curated
from flows.names import dated
from pipeline.job import PARAMS_FILE
from pipeline.params import load_params
from pipeline.process import die_with_parent
from pipeline.promotion.hand import champion_model
from pipeline.state import read_state

NAME = "champion"  # pipeline.promotion.standing.NAME, whose module wants torch
HOURS = 12.0


@task(task_run_name="champion", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def evaluate_champion(root: Path, timeout: float) -> None:
    """Evaluate the champion, in at most `timeout` seconds. Raises StageFailedError; exit code 3: below the floor."""
    try:
        attempt(NAME, ["pipeline.promotion", str(project_clone())], root, timeout)
    finally:
        state = read_state(root, NAME)
        if state is not None and state.metrics:
            artifacts.standing(state.metrics, champion_model(load_params(root / PARAMS_FILE)))


@flow(name="evaluate", flow_run_name=dated, timeout_seconds=HOURS * 3600)
def evaluate(commit: str | None = None) -> None:
    """Evaluate the registered champion on held-out problems; fails where it lies below its floor.

    `commit`: whose params and held-out problems count; None: what the worker's clone has checked out.
    """
    die_with_parent()
    root = Path.cwd()
    with removed_afterwards(root):
        machine = load_params(root / PARAMS_FILE).machine
        timeout = machine.stage_timeout_hours * 3600
        curated(root, timeout, machine.retries)
        tried(evaluate_champion, machine.retries)(root, timeout)
