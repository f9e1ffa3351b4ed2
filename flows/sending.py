"""A stage is sent to a pool of workers, watched, and sent again when its machine is gone.

A machine is taken for dead when the stage's flow run neither ends nor beats (flows/heartbeat.py) for SILENCE seconds by
this process's own clock, so that clocks of machines need not agree; while the server itself does not answer, nobody is.
The flow run is then marked as crashed, which also tells the stage to stop should it live after all, and the stage goes
out again, to whichever worker takes it first. It resumes from its last checkpoint where `machine.store` holds them.

A flow run that has done its stage is kept for the next one of its pool, if that can begin now (flows/orders.py) or was
sent and no worker has taken it. Should it be gone by then, the stage goes out as any other.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.objects import State as PrefectState
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Cancelling, Crashed

from flows.attempts import StageFailedError, may_pass
from flows.dag import Dag
from flows.heartbeat import LABEL, UNREACHABLE
from flows.orders import NONE, Order
from flows.report import Outcome
from flows.supervise import STOPPED
from flows.travel import Record, Report, copy_lock, hear, place
from pipeline.errors import EXIT_BUG
from pipeline.params.workers import Workers

POLL = 0.5  # seconds between two looks at a stage; later a hundredth of the time that it takes already
LONGEST_POLL = 5.0  # seconds
LONGEST_GAP = 3 * LONGEST_POLL  # between two looks; after a longer one nothing is known of the time between
SILENCE = 60.0  # seconds without a beat
PREPARATION = 900.0  # seconds in which a worker has to have made the folder of the commit
UNCLAIMED = 120.0  # seconds after which it is said that no worker takes a stage
LOSSES = 3  # machines that one try at a stage may lose
DEPLOYMENT_OF = "stage/{pool}"


@dataclass(frozen=True)
class Journey:
    """What all stages of one recipe have in common."""

    commit: str
    overrides: Mapping[str, Any]
    workers: Workers
    recipe: UUID  # its flow run
    attempt: int = 1  # of that flow run, which a person may try again


class Sender:
    """Sends stages and collects their records in the project at `root`, and its dvc.lock in the folder `kept` too.

    Several threads may use it.
    """

    def __init__(self, root: Path, kept: Path, dag: Dag, journey: Journey, stages: tuple[str, ...]) -> None:
        self._root, self._kept, self._dag, self._journey, self._stages = root, kept, dag, journey, stages
        self._records: dict[str, Record] = {}
        self._done: set[str] = set()
        self._to_begin = set(stages)  # and those whose flow run no worker has taken yet
        self._live: dict[UUID, list[str]] = {}  # flow runs and their stages so far
        self._free: dict[str, list[UUID]] = defaultdict(list)  # pool → its flow runs that wait for one more stage
        self._changed = threading.Condition()  # a flow run has got free, or nothing is to be sent any more
        self._stopping = False

    def bring_up_to_date(self, stage: str, attempt: str) -> Outcome:
        """Send a stage until it ends by itself. `attempt` names this try. Raises StageFailedError."""
        logger = get_run_logger()
        for loss in range(LOSSES + 1):
            run = self._begin(stage, f"{attempt}-{loss}")
            run, state, report = self._watch(stage, run)
            if report is not None or not (state.is_crashed() or state.is_completed()):
                return self._end(stage, run, state, report)
            logger.warning("%s: its machine is lost (%s); it is sent again", stage, state.message or state.name)
        raise StageFailedError(stage, EXIT_BUG, f"{LOSSES + 1} machines were lost in it", 0.0)

    def stop(self) -> None:
        """Send nothing any more. Where the recipe is cancelled, cancel what was sent and has not ended.

        Where it ends for another reason, as its worker is stopped, those go on: the next recipe finds their work.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            live = tuple(self._live)
        if not live:
            return
        try:
            with get_client(sync_client=True) as client:
                recipe = client.read_flow_run(self._journey.recipe).state
                if recipe is not None and (recipe.is_cancelling() or recipe.is_cancelled()):
                    for run in live:
                        cancel(client, run)
        except UNREACHABLE as error:  # each stage hears of it by its own heartbeat
            get_run_logger().warning("not every stage could be cancelled: %s", error)

    def _begin(self, stage: str, key: str) -> UUID:
        """Give a stage to a flow run of its pool that waits for one, else to one of its own."""
        with self._changed:
            if self._stopping:
                raise StageFailedError(stage, STOPPED, "stopped", 0.0)
            return self._hand_on(stage) or self._send(stage, key)

    def _send(self, stage: str, key: str) -> UUID:
        journey = self._journey
        run = run_deployment(
            DEPLOYMENT_OF.format(pool=journey.workers.pool(stage)),
            parameters={
                "name": stage,
                "commit": journey.commit,
                "recipe": str(journey.recipe),
                "overrides": dict(journey.overrides),
                "records": self._known(stage),
            },
            flow_run_name=stage,
            timeout=0,
            idempotency_key=f"{journey.recipe}-{journey.attempt}-{stage}-{key}",
        )
        assert isinstance(run, FlowRun)
        self._live[run.id] = [stage]
        return run.id

    def _hand_on(self, stage: str) -> UUID | None:
        free = self._free[self._journey.workers.pool(stage)]
        if not free:
            return None
        run = free.pop()
        self._live[run].append(stage)
        self._to_begin.discard(stage)
        with suppress(*UNREACHABLE):  # where it has not heard it ends, which is seen, and the stage is sent again
            Order(name=stage, records=self._known(stage)).send_to(run)
            with get_client(sync_client=True) as client:
                client.update_flow_run(run, name=", ".join(self._live[run]))
        return run

    def _known(self, stage: str) -> dict[str, Any]:
        """The records that a stage's machine has to have."""
        wanted = self._dag.needs[stage] | {stage}  # what an earlier try at it has cost counts too
        return {name: asdict(record) for name, record in self._records.items() if name in wanted}

    def _watch(self, stage: str, run: UUID) -> tuple[UUID, PrefectState, Report | None]:
        """The flow run that has reported of a stage, or has ended without: by itself or because it is silent."""
        watch = Watch(f"{stage}: no worker of pool {self._journey.workers.pool(stage)} takes it")
        logger, begun = get_run_logger(), time.monotonic()
        while not self._stopping:
            try:
                with get_client(sync_client=True) as client:
                    while not self._pause(min(LONGEST_POLL, max(POLL, (time.monotonic() - begun) / 100))):
                        flow_run = client.read_flow_run(run)
                        state = flow_run.state
                        assert state is not None
                        if state.is_scheduled():
                            run = self._take_back(client, stage, run)
                        else:
                            self._is_taken(stage)
                            report = None if state.is_pending() else hear(client, run, stage)
                            if state.is_final():
                                self._live.pop(run, None)
                            if report is not None or state.is_final():
                                return run, state, report
                        if silence := watch.look(flow_run):
                            if state.is_scheduled():
                                logger.warning(silence)
                                continue
                            over = Cancelled if state.is_cancelling() else Crashed
                            client.set_flow_run_state(run, over(message=silence), force=True)
            except ObjectNotFound:
                self._live.pop(run, None)
                return run, Crashed(message="its flow run was deleted"), None
            except UNREACHABLE as error:
                logger.warning("%s: Prefect's server does not answer: %s", stage, error)
                watch.forget()
                self._pause(POLL)
        raise StageFailedError(stage, STOPPED, "stopped", 0.0)

    def _pause(self, seconds: float) -> bool:
        """Wait so long, or until something has changed. Returns whether nothing is to be sent any more."""
        with self._changed:
            if not self._stopping:
                self._changed.wait(seconds)
            return self._stopping

    def _take_back(self, client: SyncPrefectClient, stage: str, run: UUID) -> UUID:
        """A stage that no worker has taken goes to a flow run of its pool that waits for one, if there is one."""
        with self._changed:
            other = None if self._stopping else self._hand_on(stage)
            if other is None:
                return run
            del self._live[run]
            with suppress(*UNREACHABLE):  # it is then done twice, with the same result
                client.set_flow_run_state(run, Cancelled(message=f"{stage} goes to flow run {other}"))
            return other

    def _is_taken(self, stage: str) -> None:
        with self._changed:
            self._to_begin.discard(stage)
            self._let_go()

    def _end(self, stage: str, run: UUID, state: PrefectState, report: Report | None) -> Outcome:
        """How a stage came out that was not lost. Raises StageFailedError."""
        if report is None:
            if state.is_cancelled():
                raise StageFailedError(stage, STOPPED, "cancelled", 0.0)
            raise StageFailedError(stage, EXIT_BUG, f"{state.name}: {state.message}", 0.0)
        with self._changed:
            self._records[stage] = report.record
            in_order = {name: self._records[name] for name in self._stages if name in self._records}
            place(self._root, in_order)
            copy_lock(self._root, self._kept)
            if report.exit_code != 0:
                raise StageFailedError(stage, report.exit_code, report.reason, report.outcome.seconds)
            self._done.add(stage)
            if not state.is_final():
                self._free[self._journey.workers.pool(stage)].append(run)
            self._let_go()
            self._changed.notify_all()
        return report.outcome

    def _let_go(self) -> None:
        """End flow runs that wait, where more of them do than stages can begin in their pool."""
        can_begin = [
            stage for stage in self._stages if stage in self._to_begin and self._dag.needs[stage] <= self._done
        ]
        for pool, free in self._free.items():
            while len(free) > sum(self._journey.workers.pool(stage) == pool for stage in can_begin):
                with suppress(*UNREACHABLE):  # it then ends by itself, later
                    NONE.send_to(free.pop(0))


class Watch:
    """Tells when too little has been seen of a flow run for too long.

    Only what was looked at all the while counts: Prefect's client asks a server that does not answer again and again,
    for a minute and more, and the stage's own does likewise.
    """

    def __init__(self, unclaimed: str) -> None:
        self._unclaimed = unclaimed
        self._seen: tuple[str, Any] | None = None
        self._since = self._looked = 0.0

    def forget(self) -> None:
        """Nobody could be seen for a while."""
        self._seen = None

    def look(self, flow_run: FlowRun, now: float | None = None) -> str:
        """What is wrong, in words; once for each silence. Empty while all is well. `now`: seconds of any clock."""
        now = time.monotonic() if now is None else now
        state = flow_run.state
        assert state is not None
        sign = (state.type.value, flow_run.labels.get(LABEL))
        since_last, self._looked = now - self._looked, now
        if sign != self._seen or since_last > LONGEST_GAP:
            self._seen, self._since = sign, now
            return ""
        limit, words = SILENCE, f"nothing heard of it for {SILENCE:.0f} s"
        if state.is_scheduled():
            limit, words = UNCLAIMED, self._unclaimed
        elif state.is_pending():
            limit, words = PREPARATION, f"not begun {PREPARATION:.0f} s after a worker took it"
        if now - self._since < limit:
            return ""
        self._since = now
        return words


def cancel(client: SyncPrefectClient, run: UUID) -> None:
    """Cancel a flow run: by its worker where one has it."""
    state = client.read_flow_run(run).state
    if state is not None and not state.is_final():
        client.set_flow_run_state(run, Cancelled() if state.is_scheduled() else Cancelling())


@task(task_run_name="{stage}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def send(stage: str, sender: Sender) -> Outcome:
    """Bring one stage up to date on another machine. Raises StageFailedError."""
    return sender.bring_up_to_date(stage, str(runtime.task_run.run_count))
