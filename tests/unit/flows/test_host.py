"""A GPU of a machine is one stage's at a time, and who waits for it says for whom."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.host import beside, gpus, taken
from pipeline.errors import InputError

HOLD = """\
import os, sys
from flows.host import taken
supervisor = int(sys.argv[1]) if len(sys.argv) > 1 else os.getpid()
with taken(1, "stage base", supervisor, print, lambda: False) as variables:
    print(variables, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1FLOW_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr("flows.host.POLL", 0.05)


def hold(*supervisor: str) -> subprocess.Popen[str]:
    """Another process that holds a slot of this machine until it is killed."""
    command = [sys.executable, "-c", HOLD, *supervisor]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("{")
    return process


def test_who_waits_says_for_whom_and_goes_on_when_the_holder_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the machine itself is what is taken
    other = hold()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        other.kill()

    with taken(1, "stage general_rl", os.getpid(), say, lambda: False) as variables:
        assert variables == {}
    other.wait()
    assert len(said) == 1
    assert f"machine is held by stage base, process {other.pid}" in said[0]


def test_a_gpu_is_free_once_the_stage_of_a_killed_holder_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    supervisor = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    other = hold(str(supervisor.pid))
    other.kill()
    other.wait()
    said: list[str] = []

    def say(line: str) -> None:
        assert supervisor.poll() is None
        said.append(line)
        supervisor.kill()

    with taken(1, "stage general_rl", os.getpid(), say, lambda: False) as variables:
        assert variables["CUDA_VISIBLE_DEVICES"] == "0"
        assert said == [f"waiting for 1 of this machine's GPUs: 0 is held by stage base, process {other.pid}"]
    supervisor.wait()
    with taken(1, "stage again", os.getpid(), pytest.fail, lambda: False):
        pass


def test_a_supervisor_that_was_gone_already_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gone = subprocess.Popen(["true"])
    gone.wait()
    other = hold(str(gone.pid))
    other.kill()
    other.wait()
    with taken(1, "stage general_rl", os.getpid(), pytest.fail, lambda: False) as variables:
        assert variables["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_driver_that_does_not_work_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == ()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    with pytest.raises(
        InputError,
        match=r"^nvidia-smi does not work here \(.*exit status 9\.\); on a machine",
    ):
        gpus()


def test_each_stage_gets_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert gpus() == ("4", "7")
    other = hold()  # has the first
    with taken(1, "stage general_rl", os.getpid(), pytest.fail, lambda: False) as variables:
        assert variables["CUDA_VISIBLE_DEVICES"] == "7"
    other.kill()
    other.wait()
    with taken(2, "stage general_rl", os.getpid(), pytest.fail, lambda: False) as variables:
        assert variables["CUDA_VISIBLE_DEVICES"] == "4,7"
    with (
        pytest.raises(InputError, match=r"distributed\.ranks: 3: this machine has 2 GPUs"),
        taken(3, "stage base", os.getpid(), pytest.fail, lambda: False),
    ):
        pass


def test_nobody_holds_a_part_of_what_he_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    other = hold()
    stopped: list[bool] = []
    with taken(2, "stage base", os.getpid(), lambda line: stopped.append(True), lambda: bool(stopped)) as variables:
        assert variables == {}  # stopped while it waited
        with taken(1, "stage general_rl", os.getpid(), pytest.fail, lambda: False) as free:
            assert free["CUDA_VISIBLE_DEVICES"] == "1"
    other.kill()
    other.wait()


def test_a_stage_knows_how_many_others_run_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    with beside() as none:
        with beside() as one, beside() as two, beside() as more:
            assert (none, one, two, more) == (0, 1, 2, 3)
        with beside() as one:  # whichever of them have ended
            assert one == 1
    with beside() as none:
        assert none == 0


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    else:
        monkeypatch.setenv("R1FLOW_LOCKS", "/")
    with (
        pytest.raises(InputError, match="belongs to another user"),
        taken(1, "stage", os.getpid(), print, lambda: False),
    ):
        pass
