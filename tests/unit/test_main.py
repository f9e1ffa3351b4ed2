"""`python -m pipeline STAGE` with stages made up here."""

import json
import subprocess
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

import pipeline.__main__ as entry
from pipeline.cost import read_cost
from pipeline.errors import GateFailedError, InputError, RunStoppedError
from pipeline.job import Job, Work, identity
from pipeline.params import Params
from pipeline.state import read_state
from tests.project import FlowProject


class SilentTracker:
    """Stands in for MLflow, which takes seconds to start."""

    run_id = "run"

    def __init__(self, *description: object) -> None:
        self.logged: list[Mapping[str, float]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.logged.append(metrics)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, str | float]]) -> None:
        pass

    def __enter__(self) -> "SilentTracker":
        return self

    def __exit__(self, *error: object) -> None:
        pass


Stage = Callable[[Params, Job], dict[str, float]]


@pytest.fixture
def run(flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch) -> Callable[[Stage], int]:
    """Run a function as the stage `first` of a project."""
    monkeypatch.chdir(flow_project.root)
    monkeypatch.setattr(entry, "Tracker", SilentTracker)
    monkeypatch.setattr(entry, "die_with_parent", lambda: None)
    monkeypatch.setattr(entry, "exit_on_signals", lambda: None)

    def run_as_stage(stage: Stage) -> int:
        module = types.ModuleType("first")
        module.run = stage  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pipeline.stages.first", module)
        return entry.main(["first"])

    return run_as_stage


def test_figures_keep_the_stages_order_and_the_key_names_the_scratch_folder(
    run: Callable[[Stage], int], flow_project: FlowProject
) -> None:
    seen = []

    def stage(params: Params, job: Job) -> dict[str, float]:
        seen.append((params.seed, job.scratch))
        return {"zeta": 1, "alpha": 0.5}

    assert run(stage) == 0
    root = flow_project.root
    key = identity(root, "first").key
    assert seen == [(1, root / "runs" / "first" / key)]
    assert list(json.loads((root / "artifacts" / "first" / "metrics.json").read_text()).items()) == [
        ("zeta", 1),
        ("alpha", 0.5),
    ]
    state = read_state(root, "first")
    assert state is not None
    assert (state.state, state.key, state.metrics, state.mlflow_run) == (
        "finished",
        key,
        {"zeta": 1, "alpha": 0.5},
        "run",
    )


def test_a_stage_that_dvc_yaml_gives_curves_has_them(run: Callable[[Stage], int], flow_project: FlowProject) -> None:
    def stage(params: Params, job: Job) -> dict[str, float]:
        job.log({"loss": 0.5, "tokens_per_s": 7.0}, 1)
        return {"loss": 0.5}

    artifacts, dag = flow_project.root / "artifacts" / "first", flow_project.root / "dvc.yaml"
    assert run(stage) == 0
    assert {path.name for path in artifacts.iterdir()} == {"metrics.json"}
    dag.write_text(dag.read_text().replace("outs: [artifacts/first/out]", "outs: [artifacts/first/curves.csv]"))
    assert run(stage) == 0
    assert (artifacts / "curves.csv").read_text() == "step,loss\n1,0.5\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [(InputError("row 3: no gold"), 2), (GateFailedError("too few"), 3), (RunStoppedError("dead reward"), 4)],
)
def test_what_the_user_can_mend_is_one_message_and_a_status(
    run: Callable[[Stage], int],
    flow_project: FlowProject,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
) -> None:
    def stage(params: Params, job: Job) -> dict[str, float]:
        raise error

    assert run(stage) == status
    assert capsys.readouterr().err == f"{error}\n"
    assert not (flow_project.root / "artifacts").exists()


def test_what_a_stage_cost_is_written_whether_or_not_it_succeeds(
    run: Callable[[Stage], int], flow_project: FlowProject
) -> None:
    def stage(params: Params, job: Job) -> dict[str, float]:
        job.meter.count(Work(trained_tokens=3, generated_tokens=4, flops=5))
        if params.seed == 1 and not (job.scratch / "tried").exists():
            (job.scratch / "tried").touch()
            raise GateFailedError("too few")
        return {"x": 1.0}

    (flow_project.root / "runs" / "first" / identity(flow_project.root, "first").key).mkdir(parents=True)
    for status, attempts in ((3, 1), (0, 2)):
        assert run(stage) == status
        state, cost = read_state(flow_project.root, "first"), read_cost(flow_project.root, "first")
        assert state is not None
        assert cost is not None
        assert (cost.attempts, cost.work) == (attempts, Work(3, 4, 5))
        assert cost.seconds > 0
        assert state.cost == cost.figures()
    files = {file.name for file in (flow_project.root / "artifacts").rglob("*") if file.is_file()}
    assert files == {"metrics.json"}  # outputs are a function of inputs: no cost among them


def test_a_spent_budget_keeps_a_stage_from_starting(
    run: Callable[[Stage], int], flow_project: FlowProject, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(params: Params, job: Job) -> dict[str, float]:
        job.meter.count(Work(trained_tokens=100))
        return {}

    assert run(stage) == 0
    params = flow_project.root / "params.yaml"
    params.write_text(params.read_text().replace("retries: 1", "retries: 1, budget: {tokens: 90}"))
    state = flow_project.root / "runs" / "first"
    state.rename(flow_project.root / "runs" / "other")  # another stage has spent it
    assert run(stage) == 5
    assert "machine.budget.tokens = 90: the stages so far have spent 100" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(run: Callable[[Stage], int], flow_project: FlowProject) -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda params, job: {"x": 1 / 0})
    state = read_state(flow_project.root, "first")
    assert state is not None
    assert (state.state, state.exit_code, state.error) == ("failed", 1, "ZeroDivisionError: division by zero")


def test_broken_params_are_in_the_state_too(run: Callable[[Stage], int], flow_project: FlowProject) -> None:
    (flow_project.root / "params.yaml").write_text("seed: many\n")
    assert run(lambda params, job: {}) == 2
    state = read_state(flow_project.root, "first")
    assert state is not None
    assert state.exit_code == 2
    assert "seed: 'many'" in state.error


@pytest.mark.parametrize("stage", ["frist", "../first"])
def test_an_unknown_stage_leaves_no_trace(flow_project: FlowProject, stage: str) -> None:
    with pytest.raises(InputError, match=r"there are first, aside, last"):
        entry.run_stage(stage, flow_project.root)
    assert not (flow_project.root / "runs").exists()


def test_the_number_of_threads_is_set_before_the_stage_is_imported(flow_project: FlowProject) -> None:
    params = flow_project.root / "params.yaml"
    params.write_text(params.read_text().replace("retries: 1", "retries: 1, threads: 1"))
    program = (
        "import os\nfrom pathlib import Path\nfrom pipeline.__main__ import settle\n"
        "from pipeline.params import load_params\nsettle(load_params(Path('params.yaml')))\n"
        "import polars\nprint(os.environ['OMP_NUM_THREADS'], polars.thread_pool_size())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=flow_project.root,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "1 1\n", result.stderr


def test_the_key_follows_params_and_dependencies(flow_project: FlowProject) -> None:
    root: Path = flow_project.root
    keys = [identity(root, "first").key]
    (root / "params.yaml").write_text((root / "params.yaml").read_text().replace("seed: 1", "seed: 2"))
    keys.append(identity(root, "first").key)
    (root / "stage.py").write_text("pass\n")
    keys.append(identity(root, "first").key)
    (root / "params.yaml").write_text((root / "params.yaml").read_text().replace("samples: 1", "samples: 2"))
    assert len(set(keys)) == 3
    assert identity(root, "first").key == keys[-1]  # `first` does not read that section


def test_a_store_that_cannot_be_used_is_told_where_ranks_would_run(
    run: Callable[[Stage], int], flow_project: FlowProject, capsys: pytest.CaptureFixture[str]
) -> None:
    root = flow_project.root
    params = (root / "params.yaml").read_text().replace("retries: 1", "retries: 1, store: /nowhere")
    (root / "params.yaml").write_text(params + "distributed: {ranks: 2}\n")
    dag = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(dag.replace("params: [seed]", "params: [seed, distributed]"))
    assert run(lambda params, job: {}) == 2
    state = read_state(root, "first")
    assert state is not None
    assert state.exit_code == 2
    assert state.error in capsys.readouterr().err
    assert "/nowhere: no such folder" in state.error


def test_a_python_without_r1flow_is_told(flow_project: FlowProject) -> None:
    stage = [sys.executable, "-S", "-m", "pipeline", "first"]  # -S: without what is installed
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(stage, cwd=flow_project.root, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"{sys.executable}: r1flow is not installed in it: `source .venv/bin/activate` first\n"
