"""The flow's task that registers, and the table of releases."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.attempts import StageFailedError
from flows.registration import register
from flows.releases import read_registered, releases_table
from pipeline.files import write_json
from pipeline.release.record import Record, Release, registered_file
from pipeline.state import read_state
from tests.project import FlowProject

FIGURE = {"mean": 0.8125, "low": 0.75, "high": 0.875}


def release(name: str, kind: str = "student", of: str | None = None) -> Release:
    evaluation = {"pass_at_1": FIGURE}
    return Release(name, name * 8, kind, of, name, {}, {}, 7_393_600, 414_016, evaluation, {})  # type: ignore[arg-type]


def shown(root: Path) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(releases_table(root))
    return text.getvalue()


def test_the_table_has_releases_and_their_versions(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "deployment"
    folder.mkdir(parents=True)
    Record((release("little"), release("little-int8", "variant", "little")), {}, {}).write(folder)
    assert read_registered(tmp_path) == []
    assert "registered" not in shown(tmp_path)
    row = {
        "release": "little",
        "model": "r1flow-little",
        "version": 3,
        "aliases": ["candidate", "champion"],
        "new": False,
    }
    write_json(registered_file(tmp_path), [row])
    text = shown(tmp_path)
    for part in ("little-int8", "81.3 %", "75.0 % to 87.5 %", "414 k", "3 champion", "registered as r1flow-RELEASE"):
        assert part in text


@pytest.mark.slow
def test_why_nothing_was_registered_is_the_processs_own_reason(flow_project: FlowProject) -> None:
    with pytest.raises(
        StageFailedError, match=r"registration: .*release\.json: missing; run stage deployment"
    ) as failed:
        register.fn(flow_project.root, 60)
    assert failed.value.exit_code == 2
    state = read_state(flow_project.root, "registration")
    assert state is not None
    assert state.exit_code == 2
