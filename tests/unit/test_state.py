"""The state file of a stage."""

import os
from pathlib import Path

import pytest

from pipeline.errors import GateFailedError, InputError, RunStoppedError
from pipeline.state import Attempt, read_state


def test_no_state_before_the_first_attempt(tmp_path: Path) -> None:
    assert read_state(tmp_path, "base") is None


def test_says_running_while_it_runs_and_finished_afterwards(tmp_path: Path) -> None:
    with Attempt(tmp_path, "base") as attempt:
        running = read_state(tmp_path, "base")
        assert running is not None
        assert (running.state, running.pid, running.exit_code) == ("running", os.getpid(), None)
        attempt.update(key="abc", metrics={"loss": 0.5})
    finished = read_state(tmp_path, "base")
    assert finished is not None
    assert (finished.state, finished.exit_code, finished.error) == ("finished", 0, "")
    assert (finished.key, finished.metrics, finished.started) == ("abc", {"loss": 0.5}, running.started)


@pytest.mark.parametrize(
    ("error", "state", "exit_code", "message"),
    [
        (InputError("line 3: not JSON"), "failed", 2, "line 3: not JSON"),
        (GateFailedError("too few rows"), "failed", 3, "too few rows"),
        (RunStoppedError("dead reward"), "failed", 4, "dead reward"),
        (RuntimeError("boom"), "failed", 1, "RuntimeError: boom"),
        (SystemExit(143), "stopped", 143, "stopped by a signal"),
    ],
)
def test_says_how_an_attempt_ended(
    tmp_path: Path, error: BaseException, state: str, exit_code: int, message: str
) -> None:
    with pytest.raises(type(error)), Attempt(tmp_path, "base"):
        raise error
    ended = read_state(tmp_path, "base")
    assert ended is not None
    assert (ended.state, ended.exit_code, ended.error) == (state, exit_code, message)


def test_two_attempts_differ(tmp_path: Path) -> None:
    states = []
    for _ in range(2):
        with Attempt(tmp_path, "base"):
            pass
        states.append(read_state(tmp_path, "base"))
    assert states[0] != states[1]
