"""When a stage's machine is taken for dead."""

import uuid

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.objects import State as PrefectState
from prefect.states import Cancelling, Pending, Running, Scheduled

from flows.heartbeat import LABEL
from flows.sending import LONGEST_GAP, LONGEST_POLL, PREPARATION, SILENCE, UNCLAIMED, Watch


def flow_run(state: PrefectState, beats: int | None = None) -> FlowRun:
    labels = {} if beats is None else {LABEL: beats}
    return FlowRun(flow_id=uuid.uuid4(), state=state, labels=labels)


class Looks:
    """Looks of a watch at a flow run every LONGEST_POLL seconds."""

    def __init__(self, unclaimed: str = "") -> None:
        self._watch, self._now = Watch(unclaimed), 1000.0

    def at(self, run: FlowRun, seconds: float) -> str:
        """What the first look found that found something within so many seconds."""
        end, found = self._now + seconds, ""
        while not found and self._now < end:
            self._now = min(end, self._now + LONGEST_POLL)
            found = self._watch.look(run, self._now)
        return found

    def away(self, seconds: float) -> None:
        """The server does not answer for so long."""
        self._now += seconds


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
    looks, run = Looks("no worker takes it"), flow_run(state)
    assert looks.at(run, LONGEST_POLL) == ""
    assert looks.at(run, limit - 1) == ""
    assert looks.at(run, 1).startswith(words)
    assert looks.at(run, limit - 1) == ""


def test_a_beat_and_a_change_of_state_are_signs_of_life() -> None:
    looks = Looks()
    for run in (flow_run(Pending()), flow_run(Running()), flow_run(Running(), 1), flow_run(Running(), 2)):
        assert looks.at(run, SILENCE - 1) == ""
    assert looks.at(run, 2 * LONGEST_POLL) != ""


@pytest.mark.parametrize("seconds", [LONGEST_GAP + 1, 10 * SILENCE])
def test_while_the_server_does_not_answer_nobody_is_dead(seconds: float) -> None:
    looks, run = Looks(), flow_run(Running(), 1)
    assert looks.at(run, SILENCE - 1) == ""
    looks.away(seconds)
    assert looks.at(run, SILENCE - 1) == ""
    assert looks.at(run, 2 * LONGEST_POLL) != ""


def test_a_failed_look_is_no_look() -> None:
    watch = Watch("")
    watch.look(flow_run(Running(), 1), now=0)
    watch.forget()
    assert watch.look(flow_run(Running(), 1), now=SILENCE) == ""
