"""Which flow run does which stage."""

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.objects import State as PrefectState
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed, Running, Scheduled

from flows import sending
from flows.attempts import StageFailedError
from flows.dag import Dag
from flows.orders import Order
from flows.report import Outcome
from flows.sending import Journey, Sender
from flows.travel import Record, Report
from pipeline.errors import EXIT_GATE
from pipeline.params.workers import Workers


class Server:
    """What a sender sees of Prefect: flow runs, which this test moves, the orders that they get, what they report."""

    def __init__(self) -> None:
        self.recipe = FlowRun(flow_id=uuid.uuid4(), state=Running())
        self.runs: list[FlowRun] = []
        self.orders: list[tuple[str, str]] = []  # a flow run's name and the stage that it is given
        self.reports: dict[tuple[UUID, str], Report] = {}
        self.keys: list[str] = []  # one flow run for each; a second one of the same would be the first again

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None: ...

    def start(self, deployment: str, flow_run_name: str, idempotency_key: str, **_: object) -> FlowRun:
        self.keys.append(idempotency_key)
        self.runs.append(FlowRun(flow_id=uuid.uuid4(), name=flow_run_name, state=Scheduled()))
        return self.runs[-1]

    def give(self, order: Order, run: UUID) -> None:
        self.orders.append((self.read_flow_run(run).name, order.name))

    def read_flow_run(self, run: UUID) -> FlowRun:
        for one in (self.recipe, *self.runs):
            if one.id == run:
                return one
        raise ObjectNotFound(LookupError())

    def set_flow_run_state(self, run: UUID, state: PrefectState, force: bool = False) -> None:
        self.read_flow_run(run).state = state

    def update_flow_run(self, run: UUID, name: str) -> None:
        self.read_flow_run(run).name = name

    def hear(self, _: object, run: UUID, stage: str) -> Report | None:
        return self.reports.get((run, stage))

    def run(self, name: str) -> FlowRun:
        """The flow run of this name, once there is one."""
        found: list[FlowRun] = []
        wait_for(lambda: found.extend(one for one in self.runs if one.name == name) or found)
        return found[-1]

    def report(self, run: FlowRun, stage: str, exit_code: int = 0) -> None:
        outcome = Outcome(stage, "failed" if exit_code else "ran", 1.0)
        self.reports[run.id, stage] = Report(outcome, exit_code, "why", Record({"cmd": stage}, None, None))


def wait_for(look: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if look():
            return
        pause.wait(0.01)
    raise AssertionError("nothing happened for ten seconds")


DAG = Dag(
    ("data", "model", "left", "right", "end"),
    {
        "data": frozenset(),
        "model": frozenset({"data"}),
        "left": frozenset({"data", "model"}),
        "right": frozenset({"data", "model"}),
        "end": frozenset({"data", "model", "left", "right"}),
    },
)


class Sent:
    """A sender of the stages of DAG, of which `data` has another pool than the others."""

    def __init__(self, root: Path, server: Server, executor: ThreadPoolExecutor) -> None:
        journey = Journey("sha", {}, Workers(default="gpu", pools={"data": "cpu"}), server.recipe.id)
        self.sender, self._executor, self.server = Sender(root, root, DAG, journey, DAG.order), executor, server

    def begin(self, stage: str) -> Future[Outcome]:
        return self._executor.submit(self.sender.bring_up_to_date, stage, "1")

    def do(self, stage: str, name: str) -> FlowRun:
        """One stage, by the flow run that has this name once the stage is given to it, and that waits afterwards."""
        return self.end(self.begin(stage), stage, name)

    def end(self, future: Future[Outcome], stage: str, name: str) -> FlowRun:
        run = self.server.run(name)
        run.state = Running()
        self.server.report(run, stage)
        assert future.result(10).state == "ran"
        return run


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    server = Server()
    patches: dict[str, Any] = {"run_deployment": server.start, "get_client": lambda **_: server, "hear": server.hear}
    for name, fake in {**patches, "POLL": 0.01}.items():
        monkeypatch.setattr(sending, name, fake)
    monkeypatch.setattr(sending, "get_run_logger", lambda: logging.getLogger("flows.sending"))
    monkeypatch.setattr(Order, "send_to", lambda order, run: server.give(order, run))
    with ThreadPoolExecutor() as executor:
        sent = Sent(tmp_path, server, executor)
        yield sent
        sent.sender.stop()  # whatever still watches


def test_a_flow_run_goes_on_with_its_pools_stages_also_with_one_that_no_worker_takes(sent: Sent) -> None:
    sent.do("data", "data")
    assert sent.server.orders == [("data", "")]  # what follows has another pool
    sent.do("model", "model")
    left = sent.begin("left")
    sent.server.run("model, left")
    right = sent.begin("right")
    unclaimed = sent.server.run("right")
    sent.end(left, "left", "model, left")
    sent.end(right, "right", "model, left, right")
    assert unclaimed.state is not None
    assert unclaimed.state.is_cancelled()
    last = sent.do("end", "model, left, right, end")
    assert sent.server.orders[-1] == (last.name, "")
    assert len(sent.server.runs) == 3


def test_a_flow_run_is_let_go_where_workers_have_taken_all_that_can_begin(sent: Sent) -> None:
    sent.do("data", "data")
    sent.do("model", "model")
    left = sent.begin("left")
    sent.server.run("model, left")
    right = sent.begin("right")
    sent.server.run("right").state = Running()
    sent.end(left, "left", "model, left")
    wait_for(lambda: sent.server.orders[-1] == ("model, left", ""))
    sent.end(right, "right", "right")
    sent.do("end", "right, end")


def test_a_stage_is_sent_again_where_the_flow_run_that_should_go_on_has_ended(sent: Sent) -> None:
    sent.do("data", "data")
    sent.do("model", "model").state = Completed()
    future = sent.begin("left")
    sent.end(future, "left", "left")
    assert [run.name for run in sent.server.runs] == ["data", "model, left", "left"]


def test_a_stage_is_sent_again_where_its_flow_run_was_deleted(sent: Sent) -> None:
    future = sent.begin("data")
    sent.server.run("data").state = Running()
    sent.server.runs.clear()
    sent.end(future, "data", "data")


def test_each_try_at_a_recipe_and_at_a_stage_sends_anew(sent: Sent, tmp_path: Path) -> None:
    sent.do("data", "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sent.sender, "_journey", replace(sent.sender._journey, attempt=2))
        sent.end(sent.begin("model"), "model", "model")
    sent.do("left", "model, left")
    assert sent.server.keys == [f"{sent.server.recipe.id}-1-data-1-0", f"{sent.server.recipe.id}-2-model-1-0"]


def test_a_flow_run_whose_stage_failed_is_given_nothing_more(sent: Sent) -> None:
    sent.do("data", "data")
    future, run = sent.begin("model"), sent.server.run("model")
    run.state = Failed()
    sent.server.report(run, "model", EXIT_GATE)
    with pytest.raises(StageFailedError, match="model: why"):
        future.result(10)
    again = sent.begin("model")
    wait_for(lambda: len(sent.server.runs) == 3)
    sent.end(again, "model", "model")
    assert [run.name for run in sent.server.runs] == ["data", "model", "model"]
