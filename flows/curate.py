"""The daily flow: what the sources hold now is curated, judged and compared; where enough is new, the recipe starts."""

import json
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.logging import get_run_logger

from flows import artifacts
from flows.attempts import attempt, may_pass, tried
from flows.checkout import project_clone, removed_afterwards
from flows.curation import curated
from flows.names import dated
from flows.repository import git
from pipeline.job import PARAMS_FILE
from pipeline.params import load_params
from pipeline.process import die_with_parent

RECIPE = "recipe/recipe"
STATE = "incoming"  # pipeline.incoming.note.FOLDER
SOURCES = "curation.sources"
HOURS = 12.0


@task(task_run_name="{step}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def look(step: str, root: Path, timeout: float) -> None:
    """A step of pipeline.incoming, in at most `timeout` seconds. Raises StageFailedError."""
    attempt(STATE, ["pipeline.incoming", step, str(project_clone())], root, timeout)


def found(step: str, root: Path) -> Any:
    """What a step has found."""
    return json.loads((root / "runs" / STATE / f"{step}.json").read_text(encoding="utf-8"))


@flow(name="curate", flow_run_name=dated, timeout_seconds=HOURS * 3600)
def curate(commit: str | None = None) -> None:
    """Curate what the sources hold now, note how far it has drifted, and start the recipe where enough of it is new.

    `commit`: whose params count; None: what the worker's clone has checked out. Pins of sources that have changed are
    overridden, here and in the recipe that is started; in git they stay as they are.
    """
    die_with_parent()
    root = Path.cwd()
    with removed_afterwards(root):
        params = load_params(root / PARAMS_FILE)
        timeout, step = params.machine.stage_timeout_hours * 3600, tried(look, params.machine.retries)
        step("pins", root, timeout)
        sources = found("pins", root)
        curated(root, timeout, params.machine.retries)
        step("compare", root, timeout)
        note = found("compare", root)
        artifacts.data(note)
        logger, enough = get_run_logger(), params.operation.new_problems
        if enough is None or note["new"] < enough:
            logger.info("%s new problems: no recipe (operation.new_problems: %s)", note["new"], enough)
            return
        begun = start_recipe(git(root, "rev-parse", "HEAD"), sources, note["digest"])
        step("begin", root, timeout)
        logger.info("%s new problems: recipe %s", note["new"], begun)


def start_recipe(commit: str, sources: list[dict[str, Any]], data: str) -> str:
    """The name of the recipe's run on these sources, which is started unless there was one on the same `data`."""
    run = run_deployment(
        RECIPE,
        parameters={"commit": commit, "overrides": {SOURCES: sources} if sources else {}},
        timeout=0,
        as_subflow=False,
        idempotency_key=f"curate-{data}",
    )
    assert isinstance(run, FlowRun)
    return run.name
