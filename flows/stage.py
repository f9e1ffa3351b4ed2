"""A stage on a worker's machine: the flow that flows/on_workers.py sends to a pool.

It is deployed once for each pool, under the pool's name: `stage/cpu` in the work pool `cpu`, `stage/gpu` in `gpu`.
The pull step (flows/checkout.py) has made a clean folder of the commit. Here DVC brings what the stage reads, runs it
under a supervisor or takes its outputs from the run cache of the remote, and pushes both. What comes back is a report
(flows/travel.py); a stage that failed says with which exit code, and is tried again, or not, by who sent it. After a
stage that went well there may come another one (flows/orders.py), in the same folder.

In a pool with GPUs (any but `cpu`) a stage takes first a GPU of its machine (flows/host.py), then a slot of the global
concurrency limit that has the pool's name, which has to exist: `prefect gcl create gpu --limit NUMBER`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

from dvc.config import Config
from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger
from prefect.states import Cancelled

from flows import artifacts
from flows.attempts import StageFailedError, judged
from flows.checkout import removed_afterwards
from flows.commands import Commands
from flows.heartbeat import Heart, beating
from flows.host import beside, taken
from flows.local import shared
from flows.orders import Order, orders
from flows.report import Outcome
from flows.supervise import STOPPED, silent_without_parent
from flows.transfer import transfer
from flows.travel import Record, Report, outputs_read, override, place, read_record, tell
from pipeline.errors import EXIT_INPUT, InputError
from pipeline.job import PARAMS_FILE, at, read_stages, read_yaml, require_stage
from pipeline.params import load_params
from pipeline.params.workers import CPU, Workers
from pipeline.process import die_with_parent

LEASE = 120.0  # seconds after which Prefect frees the slot of a machine that is gone
SLOT_SECONDS = 30.0  # between two looks whether a stage that waits for a slot is still wanted


@flow(name="stage", flow_run_name="{name}", persist_result=False)
def stage(
    name: str,
    commit: str,
    recipe: str | None = None,
    overrides: dict[str, Any] | None = None,
    records: dict[str, Any] | None = None,
) -> State | None:
    """Bring a stage up to date and push its outputs, then those that this machine is given next.

    `commit` is what the pull step has checked out; `recipe` is the flow run that sends the stage, whose end by
    cancelling ends it too; `overrides` go into params.yaml; `records` are those of the stages before it. Raises
    StageFailedError.
    """
    die_with_parent()  # a worker that is killed takes its stages along, and they are sent to another one
    root, own = Path.cwd(), UUID(str(runtime.flow_run.id))
    first = Order(name=name, records=records or {})
    todo = chain([first], orders()) if recipe else [first]
    with removed_afterwards(root), beating(own, UUID(recipe) if recipe else None) as heart:
        try:
            with silent_without_parent():
                run_in_turn(root, name, todo, overrides or {}, heart)
        except StageFailedError as error:
            if not heart.stopped:
                if error.exit_code != STOPPED:
                    record = read_record(root, error.outcome.stage, error.outcome)
                    tell(Report(error.outcome, error.exit_code, error.reason, record))
                raise
    return Cancelled(message=f"stopped: {heart.reason}") if heart.stopped else None


def run_in_turn(root: Path, name: str, todo: Iterable[Order], overrides: Mapping[str, Any], heart: Heart) -> None:
    """What the flow does in the folder of its commit: the stage `name` is the first one. Raises StageFailedError."""
    try:
        workers, seconds = prepare(root, overrides)
        with Commands(root, remote=True) as dvc:
            here: set[str] = set()  # stages whose outputs are in this folder
            for order in todo:
                name = order.name
                before = {other: Record(**record) for other, record in order.records.items()}
                place(root, before)
                elsewhere = {other: record for other, record in before.items() if other not in here}
                outcome = run_here(root, name, workers.pool(name), seconds, elsewhere, dvc, heart)
                here.add(name)
                tell(Report(outcome, 0, "", read_record(root, name, outcome)))
                artifacts.stage(root, outcome)
                get_run_logger().info("%s: %s", name, outcome.state)
    except InputError as error:
        raise StageFailedError(name, EXIT_INPUT, str(error), 0.0) from error


def prepare(root: Path, overrides: Mapping[str, Any]) -> tuple[Workers, float]:
    """Set the folder's params and remote. Returns how stages travel, and a stage's seconds. Raises InputError."""
    override(root, overrides)
    params = load_params(root / PARAMS_FILE)
    if params.workers is None:
        raise InputError(f"{PARAMS_FILE}: workers: missing: stages travel over the DVC remote that it names")
    choose_remote(root, params.workers.remote)
    return params.workers, params.machine.stage_timeout_hours * 3600


def run_here(
    root: Path, name: str, pool: str, seconds: float, elsewhere: Mapping[str, Record], dvc: Commands, heart: Heart
) -> Outcome:
    """Bring one stage up to date and push it; what was made `elsewhere` is pulled as far as the stage reads it.

    Raises StageFailedError, InputError.
    """
    require_stage(root, name)
    if reads := outputs_read(read_stages(root)[name].get("deps", []), elsewhere):
        transfer(dvc, name, seconds, "pull", "--allow-missing", *reads)
    with devices(root, name, pool, dvc.supervisor, heart) as variables, beside() as others:
        command = ("repro", "--pull", "--single-item", name)
        outcome = judged(name, root, seconds, lambda: dvc.run(command, seconds, shared(others) | variables))
    transfer(dvc, name, seconds, "push", "--run-cache", name)
    return outcome


def choose_remote(root: Path, remote: str | None) -> None:
    """Make a DVC remote the default of this folder. Raises InputError where the project has no such remote."""
    config = Config(str(root / ".dvc"))
    known = config["remote"]
    name = remote or config["core"].get("remote")
    if name not in known:
        raise InputError(
            f"workers.remote: {name!r}: no DVC remote of the project; there are {', '.join(known) or 'none'}"
        )
    with config.edit("local") as settings:
        settings["core"]["remote"] = name


@contextmanager
def devices(root: Path, name: str, pool: str, supervisor: int, heart: Heart) -> Iterator[dict[str, str]]:
    """What a stage below this supervisor needs of its pool, for as long as it runs; yields the environment for it."""
    if pool == CPU:
        yield {}
        return
    count, who = gpus_of(root, name), f"stage {name} of flow run {runtime.flow_run.id}"
    with (
        taken(count, who, supervisor, get_run_logger().info, lambda: heart.stopped) as variables,
        slots_of(pool, count, lambda: heart.stopped),
    ):
        yield variables


@contextmanager
def slots_of(pool: str, count: int, stopped: Callable[[], bool]) -> Iterator[None]:
    """Hold slots of the pool's global concurrency limit. Holds nothing where `stopped` while waiting for them."""
    with ExitStack() as held:
        while not stopped():
            # Who holds the machine's own lock goes on where only the renewal of Prefect's lease has failed.
            slots = concurrency(
                pool, count, SLOT_SECONDS, lease_duration=LEASE, strict=True, raise_on_lease_renewal_failure=False
            )
            with suppress(TimeoutError):
                held.enter_context(slots)
                break
        yield


def gpus_of(root: Path, name: str) -> int:
    """How many GPUs of one machine a stage uses: as many as it has ranks there, if dvc.yaml lets it have ranks."""
    if "distributed" not in read_stages(root)[name].get("params", []):
        return 1
    return at(read_yaml(root / PARAMS_FILE), "distributed.ranks") or 1
