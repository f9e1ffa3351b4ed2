"""When a stage's machine is taken for dead."""

import uuid

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.objects import State as PrefectState
from prefect.states import Cancelling, Pending, Running, Scheduled

from flows.heartbeat import LABEL
from flows.sending import PREPARATION, SILENCE, UNCLAIMED, Watch


def flow_run(state: PrefectState, beats: int | None = None) -> FlowRun:
    labels = {} if beats is None else {LABEL: beats}
    return FlowRun(flow_id=uuid.uuid4(), state=state, labels=labels)


@pytest.mark.parametrize(
    ("state", "limit", "words"),
    [
        (Running(), SILENCE, "nothing heard"),
        (Cancelling(), SILENCE, "nothing heard"),
        (Pending(), PREPARATION, "not begun"),
        (Scheduled(), UNCLAIMED, "no worker"),
    ],
)
def test_silence_has_a_limit_in_every_state_and_is_told_once(state: PrefectState, limit: float, words: str) -> None:
    watch = Watch("no worker takes it")
    assert watch.look(flow_run(state), now=1000) == ""
    assert watch.look(flow_run(state), now=1000 + limit - 1) == ""
    assert watch.look(flow_run(state), now=1000 + limit).startswith(words)
    assert watch.look(flow_run(state), now=1000 + limit + 1) == ""


def test_a_beat_and_a_change_of_state_are_signs_of_life() -> None:
    watch = Watch("")
    watch.look(flow_run(Pending()), now=0)
    watch.look(flow_run(Running()), now=800)
    watch.look(flow_run(Running(), 1), now=850)
    watch.look(flow_run(Running(), 2), now=900)
    assert watch.look(flow_run(Running(), 2), now=900 + SILENCE - 1) == ""
    assert watch.look(flow_run(Running(), 2), now=900 + SILENCE) != ""


def test_while_the_server_does_not_answer_nobody_is_dead() -> None:
    watch = Watch("")
    watch.look(flow_run(Running(), 1), now=0)
    watch.forget()
    assert watch.look(flow_run(Running(), 1), now=10 * SILENCE) == ""
