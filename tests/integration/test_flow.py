"""The recipe with real Prefect, a server of its own, and real DVC."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.local import environment
from tests.project import FlowProject

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_prefect_home(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home))


def run_flow(project: FlowProject, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.recipe", *arguments]
    return subprocess.run(
        command, cwd=project.root, env=environment(project.root), capture_output=True, text=True, timeout=240
    )


def rows(output: str) -> dict[str, str]:
    """Stage → state in the table at the end."""
    cells = [line.split("│") for line in output.splitlines() if line.startswith("│")]
    return {row[1].strip(): row[2].strip() for row in cells}


def test_a_run_with_failures_and_the_run_that_completes_it(flow_project: FlowProject) -> None:
    flow_project.behave(first="crash once", last="gate")
    result = run_flow(flow_project, "--until", "last")
    # What may pass is tried again, a failed gate is not, and what `last` does not need is left alone.
    assert flow_project.calls() == ["first", "first", "last"]
    assert rows(result.stdout) == {"first": "ran", "last": "failed"}
    assert result.stderr.splitlines()[-1] == "last: share_quarantined: 0.4 is above 0.2"
    assert result.returncode == 3

    flow_project.behave()
    result = run_flow(flow_project)
    assert flow_project.calls()[3:] == ["aside", "last"]
    assert rows(result.stdout) == {"first": "fresh", "aside": "ran", "last": "ran"}
    assert result.returncode == 0
    assert subprocess.run([sys.executable, "-m", "dvc", "status", "-q"], cwd=flow_project.root).returncode == 0


def test_stages_that_do_not_need_each_other_run_side_by_side(flow_project: FlowProject) -> None:
    params = flow_project.root / "params.yaml"
    params.write_text(params.read_text().replace("machine: {", "machine: {parallel: 2, "))
    flow_project.behave(first="meet", aside="meet")  # each waits for the other
    result = run_flow(flow_project)
    assert result.returncode == 0, result.stderr
    assert rows(result.stdout) == {"first": "ran", "aside": "ran", "last": "ran"}
    assert flow_project.calls()[2] == "last"
    assert subprocess.run([sys.executable, "-m", "dvc", "status", "-q"], cwd=flow_project.root).returncode == 0


def test_after_a_failure_nothing_new_begins_and_what_runs_is_finished(flow_project: FlowProject) -> None:
    params = flow_project.root / "params.yaml"
    params.write_text(params.read_text().replace("machine: {", "machine: {parallel: 2, "))
    flow_project.behave(first="slow", aside="gate")
    result = run_flow(flow_project)
    assert result.returncode == 3
    assert result.stderr.splitlines()[-1] == "aside: share_quarantined: 0.4 is above 0.2"
    states = rows(result.stdout)
    assert [states[stage] for stage in ("first", "aside", "last")] == ["ran", "failed", "not reached"]


def test_a_mistyped_stage_is_refused_before_prefect_starts(
    flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_HOME")
    result = run_flow(flow_project, "--until", "lats")
    assert result.returncode == 2
    assert result.stderr == "dvc.yaml: no stage 'lats'; there are first, aside, last\n"
    assert not (flow_project.root / "runs" / "prefect" / "prefect.db").exists()


GROUP = """\
  student:
    foreach: ${distillation.students}
    do:
      cmd: python stage.py student@${key}
      deps: [artifacts/first/out]
      params: ["distillation.students.${key}"]
      outs: ["artifacts/student/${key}/out"]
"""


def test_each_member_of_a_group_is_a_stage(flow_project: FlowProject) -> None:
    with (flow_project.root / "dvc.yaml").open("a") as dag:
        dag.write(GROUP)
    result = run_flow(flow_project, "--until", "student@little")
    assert flow_project.calls() == ["first", "student@little"]
    states = rows(result.stdout)
    assert {stage: states[stage] for stage in states if stage} == {"first": "ran", "student@little": "ran"}  # one wraps
    assert (flow_project.root / "artifacts" / "student" / "little" / "out").read_text() == "student@little"
    assert result.returncode == 0
