"""Arms run by DVC in workspaces: equal work once, what failed by its reason, a rerun does what is missing."""

from collections.abc import Sequence
from typing import Any

import pytest

from flows import study
from pipeline.errors import InputError
from pipeline.studies.definition import STUDIES, workspace, write_yaml
from tests.project import FlowProject

pytestmark = pytest.mark.slow  # DVC starts anew for every arm

DAG = """\
stages:
  base:
    cmd: python stage.py base
    deps: [stage.py]
    params: [seed]
    outs: [artifacts/base/model]
  cold_start:
    cmd: python stage.py cold_start
    deps: [artifacts/base/model]
    params: [cold_start]
    outs: [artifacts/cold_start/model]
"""
STAGE = """\
import sys
from pathlib import Path
from pipeline.errors import RunStoppedError, exit_code
from pipeline.job import artifacts, read_yaml
from pipeline.state import Attempt

def main(stage, root):
    try:
        with Attempt(root, stage):
            with (root.parent / "calls").open("a") as calls:
                calls.write(f"{root.name}:{stage}\\n")
            if stage == "cold_start" and read_yaml(root / "params.yaml")["cold_start"]["examples"] == 13:
                raise RunStoppedError("step 2: out of luck")
            (artifacts(root, stage)).mkdir(parents=True, exist_ok=True)
            (artifacts(root, stage) / "model").write_text(stage)
    except RunStoppedError as error:
        sys.exit(exit_code(error))

main(sys.argv[1], Path.cwd())
"""


class StudyProject:
    compared = 0  # exit status of the comparison

    def __init__(self, project: FlowProject) -> None:
        self.root = project.root
        (self.root / "dvc.yaml").write_text(DAG)
        (self.root / "stage.py").write_text(STAGE)

    def run(self, examples: int) -> int:
        arms: dict[str, Any] = {
            "few": {"model": "cold_start"},
            "more": {"model": "cold_start", "params": {"cold_start.examples": examples}},
        }
        path = self.root / STUDIES / "which.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_yaml({"question": "Which?", "control": "few", "seeds": [5], "arms": arms}, path)
        return study.run_study(self.root, "which")

    def calls(self) -> list[str]:
        path = self.root / "runs" / "studies" / "which" / "calls"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def project(flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch) -> StudyProject:
    run, project = study.run, StudyProject(flow_project)

    def run_all_but_the_comparison(command: Sequence[str], *, timeout: float, **rest: Any) -> int:
        return project.compared if "pipeline.studies" in command else run(command, timeout=timeout, **rest)

    monkeypatch.setattr(study, "run", run_all_but_the_comparison)
    monkeypatch.setattr(study, "publish", lambda root: f"the page: {root}")
    return project


def test_equal_stages_run_once_and_a_rerun_runs_nothing(
    project: StudyProject, capfd: pytest.CaptureFixture[str]
) -> None:
    assert project.run(examples=20) == 0
    assert f"the page: {project.root}" in capfd.readouterr().out
    assert project.calls() == ["few-seed-5:base", "few-seed-5:cold_start", "more-seed-5:cold_start"]
    more = workspace(project.root, "which", "more", 5)
    assert (more / "artifacts" / "base" / "model").read_text() == "base"  # restored
    assert "examples: 20" in (more / "params.yaml").read_text()
    assert "seed: 5" in (more / "params.yaml").read_text()
    assert project.run(examples=20) == 0
    assert len(project.calls()) == 3
    assert project.run(examples=21) == 0
    assert project.calls()[3:] == ["more-seed-5:cold_start"]


def test_code_that_changed_since_is_brought_in(project: StudyProject) -> None:
    project.run(examples=20)
    (project.root / "stage.py").write_text(STAGE + "# new\n")
    project.run(examples=20)
    assert project.calls()[3:] == ["few-seed-5:base"]  # its output is the same, so the others stay


def test_an_arm_that_fails_ends_the_study_with_the_stage_s_own_status_and_reason(
    project: StudyProject, capfd: pytest.CaptureFixture[str]
) -> None:
    assert project.run(examples=13) == 4
    assert "which: more, seed 5: cold_start: step 2: out of luck" in capfd.readouterr().err


def test_a_comparison_that_takes_too_long_is_told(project: StudyProject, capfd: pytest.CaptureFixture[str]) -> None:
    project.compared = study.TIMED_OUT
    assert project.run(examples=20) == 1
    said = capfd.readouterr()
    assert "which: the comparison took too long" in said.err
    assert "the page" not in said.out


def test_nothing_runs_where_an_arm_is_wrong(project: StudyProject) -> None:
    with pytest.raises(InputError, match=r"arms\.more\.params: cold_start\.examples: 0"):
        project.run(examples=0)
    assert project.calls() == []
