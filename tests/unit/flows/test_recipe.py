"""One stage through DVC, without Prefect's engine: what became of it, and why."""

import uuid
from collections.abc import Callable, Iterator

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from flows.attempts import StageFailedError, may_pass
from flows.commands import Pool
from flows.recipe import run_stage
from flows.report import Outcome
from tests.project import FlowProject

pytestmark = pytest.mark.slow  # a process with DVC starts for every test


Run = Callable[..., Outcome]


@pytest.fixture
def bring_up_to_date(flow_project: FlowProject) -> Iterator[Run]:
    def run(stage: str, timeout: float = 60) -> Outcome:
        return run_stage.fn(dvc, stage, flow_project.root, timeout)

    with Pool(flow_project.root) as dvc:
        yield run


def test_a_stage_runs_once_and_is_fresh_afterwards(flow_project: FlowProject, bring_up_to_date: Run) -> None:
    assert bring_up_to_date("first").state == "ran"
    assert bring_up_to_date("first") == Outcome("first", "fresh")
    assert flow_project.calls() == ["first"]


@pytest.mark.parametrize(
    ("behaviour", "exit_code", "message"),
    [
        ("input", 2, "first: data.jsonl: line 3: not JSON"),
        ("gate", 3, "first: share_quarantined: 0.4 is above 0.2"),
        ("sick", 4, "first: step 20: dead reward"),
        ("crash", 1, "first: RuntimeError: out of luck"),
        ("die", 1, "first: killed"),
    ],
)
def test_the_reason_comes_from_the_stage_not_from_dvc(
    flow_project: FlowProject, bring_up_to_date: Run, behaviour: str, exit_code: int, message: str
) -> None:
    flow_project.behave(first=behaviour)
    with pytest.raises(StageFailedError) as failure:
        bring_up_to_date("first")
    assert failure.value.exit_code == exit_code
    assert str(failure.value).startswith(message)


@pytest.mark.parametrize(("exit_code", "again"), [(1, True), (2, False), (3, False), (4, False), (5, False)])
def test_only_what_another_try_may_help_is_tried_again(exit_code: int, again: bool) -> None:
    failed = Failed(data=StageFailedError("first", exit_code, "reason", 1.0))
    task_run = TaskRun(task_key="run_stage", dynamic_key="0", flow_run_id=uuid.uuid4())
    assert may_pass(run_stage, task_run, failed) is again


def test_a_stage_that_dvc_does_not_start_is_told_apart(bring_up_to_date: Run) -> None:
    with pytest.raises(StageFailedError, match="before the stage ran"):
        bring_up_to_date("last")  # its input is missing


def test_a_stage_has_a_time_limit(flow_project: FlowProject, bring_up_to_date: Run) -> None:
    flow_project.behave(first="hang")
    with pytest.raises(StageFailedError, match=r"not done after 4 s \(machine.stage_timeout_hours\)"):
        bring_up_to_date("first", timeout=4)
