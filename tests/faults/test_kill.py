"""Kill any process of a run: all the others end too, and the next run completes the work."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.state import read_state
from tests.processes import unless_gone
from tests.project import FlowProject

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_prefect_home(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home))


R1FLOW = [sys.executable, "-c", "from pipeline.cli import main; main()", "run"]


def start(project: FlowProject) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A run that hangs in its first stage, and all processes below it."""
    (project.root / "played" / "hangs").unlink(missing_ok=True)
    project.behave(first="hang")
    run = subprocess.Popen(R1FLOW, cwd=project.root)
    deadline = time.monotonic() + 120
    while not (project.root / "played" / "hangs").exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The stage's detached child, the last to be born, is there as soon as the stage says that it hangs.
    return run, psutil.Process(run.pid).children(recursive=True)


def assert_all_end(processes: list[psutil.Process]) -> None:
    assert psutil.wait_procs(processes, timeout=40)[1] == []


def test_nothing_outlives_a_killed_run_and_the_next_one_completes(flow_project: FlowProject) -> None:
    run, processes = start(flow_project)
    assert len(processes) >= 7  # supervisor, flow, Prefect's server, supervisor, DVC, stage, its detached child
    run.kill()
    run.wait()
    assert_all_end(processes)

    run, processes = start(flow_project)
    flow = next(process for process in processes if unless_gone(process.cmdline, [])[1:3] == ["-m", "flows.recipe"])
    flow.kill()
    assert run.wait(timeout=60) != 0
    assert_all_end(processes)

    flow_project.behave()
    assert subprocess.run(R1FLOW, cwd=flow_project.root, timeout=120).returncode == 0
    assert flow_project.calls() == ["first", "first", "first", "aside", "last"]


def test_a_stopped_run_stops_its_stage(flow_project: FlowProject) -> None:
    run, processes = start(flow_project)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 128 + signal.SIGINT
    assert_all_end(processes)
    state = read_state(flow_project.root, "first")
    assert state is not None
    assert (state.state, state.exit_code) == ("stopped", 128 + signal.SIGTERM)
