"""The stage `curation` by itself, for the flows that need its data and not the recipe."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.attempts import attempt, may_pass, tried
from flows.report import Outcome


@task(task_run_name="curation", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def curate_data(root: Path, timeout: float) -> Outcome:
    """Bring the stage up to date, in at most `timeout` seconds. Raises StageFailedError; exit code 3: a gate failed."""
    return attempt("curation", ["dvc", "--wait-for-lock", "repro", "--single-item", "curation"], root, timeout)


def curated(root: Path, timeout: float, retries: int) -> Outcome:
    """Do that, and try again what may pass."""
    return tried(curate_data, retries)(root, timeout)
