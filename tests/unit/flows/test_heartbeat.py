"""A stage hears that it is not wanted any more."""

import logging
import uuid
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Crashed, Running

from flows import heartbeat
from flows.heartbeat import Heart


class Server:
    """What a heart sees of Prefect: its own flow run and the recipe's."""

    def __init__(self, *runs: FlowRun) -> None:
        self.runs = {run.id: run for run in runs}
        self.beats = 0

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None: ...

    def update_flow_run_labels(self, run: UUID, labels: dict[str, int]) -> None:
        if run not in self.runs:  # as Prefect's client does here
            raise httpx.HTTPStatusError("404", request=httpx.Request("PATCH", "http://x"), response=httpx.Response(404))
        self.beats = labels[heartbeat.LABEL]
        if self.beats == 3:
            self.change()

    def change(self) -> None:
        """What happens at the third beat."""

    def read_flow_run(self, run: UUID) -> FlowRun:
        if run not in self.runs:
            raise ObjectNotFound(LookupError())
        return self.runs[run]


@pytest.mark.parametrize(
    ("who", "state", "reason"),
    [
        ("own", Cancelling(), "this flow run is Cancelling"),
        ("own", Crashed(), "this flow run is Crashed"),
        ("own", None, "this flow run, or the recipe's, was deleted"),
        ("recipe", Cancelled(), "the recipe is Cancelled"),
        ("recipe", None, "this flow run, or the recipe's, was deleted"),
    ],
)
def test_a_stage_that_is_not_wanted_any_more_is_stopped(
    who: str, state: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {name: FlowRun(flow_id=uuid.uuid4(), state=Running()) for name in ("own", "recipe")}
    server, stopped = Server(*runs.values()), list[bool]()

    def change() -> None:
        if state is None:
            del server.runs[runs[who].id]
        else:
            runs[who].state = state  # type: ignore[assignment]

    monkeypatch.setattr(server, "change", change)
    monkeypatch.setattr(heartbeat, "get_client", lambda **_: server)
    monkeypatch.setattr(heartbeat, "get_run_logger", lambda: logging.getLogger("flows.heartbeat"))
    monkeypatch.setattr(heartbeat, "stop_all", lambda: stopped.append(True))
    monkeypatch.setattr(heartbeat, "BEAT", 0.01)
    heart = Heart(runs["own"].id, runs["recipe"].id)
    heart.beat_on()
    assert (server.beats, heart.reason, stopped) == (3, reason, [True])
