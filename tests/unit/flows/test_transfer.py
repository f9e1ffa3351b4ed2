"""DVC's commands of one stage, by one process."""

from pathlib import Path

import pytest

from flows import transfer as module
from flows.attempts import StageFailedError
from flows.commands import Commands
from flows.transfer import transfer
from tests.project import FlowProject
from tests.unit.flows.test_commands import dvc_processes


def test_one_process_does_all_and_is_replaced_when_it_is_gone(
    flow_project: FlowProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAY", 0.0)
    settings = f"[core]\n    remote = here\n['remote \"here\"']\n    url = {tmp_path / 'remote'}\n"
    (flow_project.root / ".dvc" / "config.local").write_text(settings)
    with Commands(flow_project.root, remote=True) as dvc:
        transfer(dvc, "first", 60, "push")
        (process,) = dvc_processes()
        transfer(dvc, "first", 60, "push")
        assert dvc_processes() == [process]

        process.kill()
        transfer(dvc, "first", 60, "push")
        assert dvc_processes() not in ([], [process])

        with pytest.raises(StageFailedError, match="first: dvc pull: ended with 1"):
            transfer(dvc, "first", 60, "pull", "nothing")
        with pytest.raises(StageFailedError, match="first: dvc push: not done after 0 s"):
            transfer(dvc, "first", 0.001, "push")
    assert dvc_processes() == []
