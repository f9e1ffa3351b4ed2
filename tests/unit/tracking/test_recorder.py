"""The process that MLflow lives in: whose it is, when it ends, and what happens where it ends too early."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.params import Tracking
from pipeline.tracking import Description, Tracker, recorder
from tests.processes import unless_gone

pytestmark = pytest.mark.slow  # each recorder imports MLflow

WORK = Description("base", "0123abcd", {}, {})


@pytest.fixture(autouse=True)
def none_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R1FLOW_RECORDER")
    monkeypatch.delenv("R1FLOW_RECORDER_KEY")


def kill_youngest() -> None:
    recorders = [
        child for child in psutil.Process().children() if unless_gone(child.cmdline, [])[-1:] == ["pipeline.tracking"]
    ]
    youngest = max(recorders, key=psutil.Process.create_time)
    youngest.kill()
    youngest.wait(10)


def test_a_stage_by_itself_has_one_of_its_own_which_ends_with_its_run(tmp_path: Path) -> None:
    before = psutil.Process().children()
    with Tracker(Tracking(), tmp_path, WORK) as tracker:
        assert tracker.run_id
        assert len(psutil.Process().children()) == len(before) + 1
    assert psutil.Process().children() == before
    assert "R1FLOW_RECORDER" not in os.environ


def test_where_the_shared_one_was_killed_a_stage_starts_its_own(tmp_path: Path) -> None:
    with recorder():
        with Tracker(Tracking(), tmp_path, WORK) as tracker:
            first = tracker.run_id
        kill_youngest()
        with Tracker(Tracking(), tmp_path, WORK) as tracker:
            assert tracker.run_id != first


def test_a_recorder_that_is_killed_does_not_take_the_stage_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(Tracking(), tmp_path, WORK) as tracker:
        assert tracker.run_id
        kill_youngest()
        tracker.log({"loss": 1.0}, 0)
    assert "1 figures were never sent" in capsys.readouterr().err


def test_it_ends_with_its_caller_even_where_that_is_killed() -> None:
    program = (
        "import psutil, time\nfrom pipeline.tracking import recorder\n"
        "with recorder():\n    print(psutil.Process().children()[0].pid, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        child = psutil.Process(int(caller.stdout.readline()))
        caller.kill()
    child.wait(30)
