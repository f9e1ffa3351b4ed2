"""The recipe on many machines: the flow `recipe` of a Prefect server, which sends each stage to a pool of workers.

It differs from flows/recipe.py, which runs everything where it is started, in where the stages run and in nothing
else: the same DAG, the same order, the same rules for what is tried again, and the same dvc.lock in the end. The
section `workers` of params.yaml says which pool runs which stage (docs/workers.md).

It runs in the pool `cpu`, in a folder that the pull step has made of its commit, and needs one deployment for each
pool: `stage/cpu`, `stage/gpu`, … (flows/stage.py). What follows the deployment stage (registration, plan, page)
happens here. A worker of the pool `cpu` has to take at least two flow runs at a time: this one, and a stage.

dvc.lock is written after each stage, and the page at the end, to runs/recipes/FLOW-RUN/ of this worker's clone; at the
end it goes to recipes/FLOW-RUN/ in the artifact store too, where params name one (`machine.store`). With
`branch` it is committed, with the params that it belongs to, on top of the recipe's commit, and pushed to that branch
of the clone's origin.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.tasks import exponential_backoff

from flows import artifacts
from flows.approval import FOLLOW, ask
from flows.attempts import RETRY_DELAY, StageFailedError
from flows.checkout import project_clone, removed_afterwards
from flows.commands import Commands
from flows.dag import Dag, read_dag
from flows.names import dated
from flows.page import publish
from flows.planning import chosen
from flows.recipe import AFTER, follow_up
from flows.report import Outcome
from flows.repository import NETWORK_SECONDS, git
from flows.schedule import run_in_order
from flows.sending import DEPLOYMENT_OF, Journey, Sender, send
from flows.stage import choose_remote
from flows.supervise import silent_without_parent, stop_all
from flows.transfer import transfer
from flows.travel import LOCK_FILE, override
from pipeline.errors import InputError
from pipeline.job import PARAMS_FILE
from pipeline.params import Params, load_params
from pipeline.params.workers import CPU, Workers
from pipeline.planning.record import NAME as PLAN
from pipeline.process import die_with_parent
from pipeline.release.record import STAGE as DEPLOYMENT
from pipeline.store import artifact_store

AT_ONCE = 100  # stages that are sent and watched at a time: how many run is up to the workers


@flow(name="recipe", flow_run_name=dated, persist_result=False)
def recipe_on_workers(
    commit: str | None = None,
    until: str | None = None,
    overrides: dict[str, Any] | None = None,
    branch: str | None = None,
) -> None:
    """Bring the recipe up to date as far as the stage `until`, each stage in its pool.

    `commit`: any name that git knows; None is what the worker's clone has checked out. `overrides`: values of
    params.yaml by their dotted names, as of `dvc exp run -S`; each worker writes them into the params.yaml of its
    folder. All of it is checked before a stage is sent. Raises InputError, StageFailedError.
    """
    die_with_parent()
    root, logger = Path.cwd(), get_run_logger()
    with removed_afterwards(root):
        override(root, overrides or {})
        params, dag = load_params(root / PARAMS_FILE), read_dag(root)
        stages = dag.until(until)
        workers = require_workers(params, stages)
        choose_remote(root, workers.remote)
        if branch is not None:
            require_branch(branch)
        own, attempt = UUID(str(runtime.flow_run.id)), runtime.flow_run.run_count
        journey = Journey(git(root, "rev-parse", "HEAD"), overrides or {}, workers, own, attempt)
        logger.info("commit %s, stages %s", journey.commit, ", ".join(stages))
        outcomes: dict[str, Outcome] = {}
        kept = project_clone() / "runs" / "recipes" / str(journey.recipe)
        sender = Sender(root, kept, dag, journey, stages)
        try:
            with silent_without_parent():
                run_stages(dag, stages, outcomes, sender, params.machine.retries)
                if DEPLOYMENT in stages:
                    finish(root, kept, params, outcomes)
        finally:
            stop_all()
            sender.stop()
            if params.machine.store is not None:
                store_lock(root, params.machine.store, f"recipes/{journey.recipe}/{LOCK_FILE}")
            show((*stages, *AFTER) if DEPLOYMENT in stages else stages, outcomes)
        if branch is not None:
            commit_lock(root, branch)


def require_workers(params: Params, stages: Sequence[str]) -> Workers:
    """The section `workers`, once the server knows all that the recipe sends runs to. Raises InputError."""
    if params.workers is None:
        raise InputError(f"{PARAMS_FILE}: workers: missing: it says in which pools the stages run")
    with get_client(sync_client=True) as client:
        for pool in sorted({params.workers.pool(stage) for stage in stages}):
            deployment = DEPLOYMENT_OF.format(pool=pool)
            with known(f"workers: {pool!r}", f"deployment {deployment}"):
                client.read_deployment_by_name(deployment)
            if pool != CPU:
                with known(f"workers: {pool!r}", f"global concurrency limit {pool}"):
                    client.read_global_concurrency_limit_by_name(pool)
        if DEPLOYMENT in stages and params.operation.approval.by == "run" and params.tracking.uri is not None:
            with known("operation.approval.by: 'run'", f"deployment {FOLLOW}"):
                client.read_deployment_by_name(FOLLOW)
    return params.workers


@contextmanager
def known(key: str, what: str) -> Iterator[None]:
    """Let what the server does not know, which the block asks for, be the fault of a key. Raises InputError."""
    try:
        yield
    except ObjectNotFound:
        raise InputError(f"{PARAMS_FILE}: {key}: the server has no {what}") from None


def run_stages(dag: Dag, stages: Sequence[str], outcomes: dict[str, Outcome], sender: Sender, retries: int) -> None:
    """Send `stages` as they get ready and note how each came out. Raises the first StageFailedError."""
    # Prefect works the pauses out here, from the number of retries.
    task_of = send.with_options(retries=retries, retry_delay_seconds=exponential_backoff(RETRY_DELAY))

    def begin(stage: str, beside: int) -> PrefectFuture[Outcome]:
        return task_of.submit(stage, sender)

    run_in_order(dag, stages, outcomes, begin, AT_ONCE)


def finish(root: Path, kept: Path, params: Params, outcomes: dict[str, Outcome]) -> None:
    """Register the releases, plan, write the page, ask for approval: here, with everything that the stages have made.

    Raises StageFailedError.
    """
    with Commands(root, remote=True) as dvc:
        transfer(dvc, DEPLOYMENT, params.machine.stage_timeout_hours * 3600, "pull")
    logger, failure = get_run_logger(), None
    try:
        follow_up(root, outcomes)
    except StageFailedError as error:  # the page says what there is; one who is stopped is to be gone soon
        failure = error
    if outcomes.get(PLAN, Outcome(PLAN, "failed")).state in ("ran", "fresh"):
        logger.info(chosen(root))
    logger.info(publish(root, kept))
    if failure is not None:
        raise failure
    logger.info(ask(root))


def store_lock(root: Path, place: str, key: str) -> None:
    """Put dvc.lock, as far as it has come, into the artifact store. Whether that works changes nothing else."""
    if not (root / LOCK_FILE).is_file():
        return
    try:
        artifact_store(place, root).upload(root / LOCK_FILE, key)
    except (InputError, ConnectionError) as error:
        get_run_logger().warning("%s is not in the artifact store: %s", LOCK_FILE, error)


def require_branch(branch: str) -> str:
    """The remote of this worker's clone that a branch can be pushed to. Raises InputError."""
    project = project_clone()
    try:
        git(project, "check-ref-format", f"refs/heads/{branch}")
    except InputError:
        raise InputError(f"branch: {branch!r}: git allows no such name") from None
    remotes = git(project, "remote").split()
    if not remotes:
        raise InputError(f"branch: {branch!r}: {project} has no remote to push it to")
    return remotes[0]


def commit_lock(root: Path, branch: str) -> None:
    """Commit dvc.lock and the params that it belongs to, and push that to `branch`.

    Raises InputError, ConnectionError.
    """
    author = ("-c", "user.name=r1flow", "-c", "user.email=r1flow@localhost")
    git(root, "add", "--", LOCK_FILE, PARAMS_FILE)
    if git(root, "status", "--porcelain", "--untracked-files=no"):
        git(root, *author, "commit", "--quiet", f"--message=Recipe run {runtime.flow_run.name}")
    project, head = project_clone(), git(root, "rev-parse", "HEAD")
    git(project, "fetch", "--quiet", str(root), head)  # credentials and settings for the origin are the clone's
    git(project, "push", "--quiet", require_branch(branch), f"{head}:refs/heads/{branch}", timeout=NETWORK_SECONDS)


def show(stages: Sequence[str], outcomes: Mapping[str, Outcome]) -> None:
    """The table that a person sees with the flow run."""
    artifacts.stages(outcomes.get(stage, Outcome(stage, "not reached")) for stage in stages)
