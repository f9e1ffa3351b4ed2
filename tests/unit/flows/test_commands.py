"""Processes for DVC's commands: used again, each command with its own environment, none left behind."""

import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.commands import Pool
from flows.supervise import STOPPED
from tests.processes import unless_gone
from tests.project import FlowProject


def dvc_processes() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "flows.commands" in unless_gone(child.cmdline, [])[:3]
    ]


@pytest.fixture
def project(flow_project: FlowProject) -> Path:
    """Its stages write down what they see of a variable; one of them takes long."""
    show = "import os, pathlib; pathlib.Path('{0}').write_text(os.environ.get('SEEN', ''))"
    stages = {name: show.format(name) for name in ("first", "second")} | {"long": "import time; time.sleep(60)"}
    lines = [f'  {name}:\n    cmd: {sys.executable} -c "{code}"\n' for name, code in stages.items()]
    (flow_project.root / "dvc.yaml").write_text("stages:\n" + "".join(lines))
    return flow_project.root


def test_a_process_is_used_again_and_sees_each_commands_variables_alone(project: Path) -> None:
    with Pool(project) as dvc:
        assert dvc.run(["repro", "--single-item", "first"], 60, {"SEEN": "1"}) == 0
        processes = dvc_processes()
        assert dvc.run(["repro", "--single-item", "second"], 60, {}) == 0
        assert dvc_processes() == processes
        assert len(processes) == 1
    assert ((project / "first").read_text(), (project / "second").read_text()) == ("1", "")
    assert dvc_processes() == []


def test_what_runs_when_the_block_ends_by_an_error_is_stopped(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.supervise._stopping", False)  # is put back
    statuses: list[int] = []

    def run() -> None:
        statuses.append(dvc.run(["repro", "--single-item", "long"], 60, {}))

    def interrupted() -> None:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(dvc_processes()) < 2 or not sleeping():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        raise KeyboardInterrupt

    threads = [threading.Thread(target=run) for _ in range(2)]  # the second waits for DVC's lock of the first
    with pytest.raises(KeyboardInterrupt), Pool(project) as dvc:
        interrupted()
    for thread in threads:
        thread.join(30)
    assert statuses == [STOPPED, STOPPED]
    assert not sleeping()


def sleeping() -> list[psutil.Process]:
    return [
        one
        for one in psutil.Process().children(recursive=True)
        if "time.sleep(60)" in " ".join(unless_gone(one.cmdline, []))
    ]
