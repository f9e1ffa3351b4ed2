"""A run's health after the fact, from what it has logged."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from pipeline import cli, params
from pipeline.checkup import check_up, findings
from pipeline.errors import InputError
from pipeline.params import Tracking
from pipeline.tracking import Description, Recorded, Tracker, read_run
from tests.project import FlowProject


def found(steps: list[tuple[int, dict[str, float]]], **bounds: str) -> list[tuple[str, str]]:
    """Steps and condition of each finding in a run of these figures and bounds."""
    logged = {f"reasoning_rl.health.{name}": text for name, text in bounds.items()}
    recorded = Recorded("0" * 32, "reasoning_rl", logged, tuple(steps))
    return [(finding.steps, finding.first.condition) for finding in findings(recorded)]


def test_one_row_for_a_condition_that_lasts_and_one_for_each_time_it_comes() -> None:
    kl = [0.1, 2.0, 2.0, 2.0, 2.0, 2.0, 0.1, 2.0, 2.0, 2.0]
    assert found([(step, {"kl": value}) for step, value in enumerate(kl)]) == [
        ("3 to 5", "KL blow-up"),
        ("9", "KL blow-up"),
    ]


def test_a_run_is_held_to_the_bounds_that_it_ran_with() -> None:
    steps = [(step, {"kl": 0.3}) for step in range(4)]
    assert found(steps) == []
    assert found(steps, max_kl="0.2", alarm="4") == [("3", "KL blow-up")]


def test_steps_that_come_again_after_a_checkpoint_are_no_new_ones() -> None:
    once = [(step, {"kl": 2.0}) for step in range(2)]
    assert found([*once, *once]) == []
    assert found([(0, {"kl": 2.0})] * 9) == []


def test_figures_of_one_step_that_were_logged_apart_belong_together() -> None:
    steps = [(step, {name: 2.0}) for step in range(3) for name in ("kl", "loss")]
    assert found(steps) == [("2", "KL blow-up")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of three stages and a later, healthy one of the first."""
    root = tmp_path_factory.mktemp("store")
    health = {"reasoning_rl": {"health": params.Health(max_kl=0.5).model_dump(mode="json")}}
    for stage, values, figures in (
        ("reasoning_rl", health, {"kl": 0.7, "loss": 0.0}),
        ("curation", {}, {}),
        ("distillation@small-2", {"distillation.students.small-2": {"train": {"steps": 3}}}, {"loss": 0.5}),
        ("reasoning_rl", health, {"kl": 0.1, "loss": 0.0}),
    ):
        with Tracker(Tracking(), root, Description(stage, str(figures), values, {})) as tracker:
            for step in range(1, 6 if figures else 1):
                tracker.log(figures, step)
            if figures.get("kl") == 0.7:
                tracker.log({"loss": math.nan, "kl": math.inf}, 6)
            tracker.log({"final/pass_at_1": 0.5}, 0)
            (root / f"{stage}-{figures.get('kl')}").write_text(tracker.run_id)
    return root


def run_id(store: Path, name: str) -> str:
    return (store / name).read_text()


@pytest.mark.slow
def test_a_run_is_read_by_stage_or_by_the_beginning_of_its_id(store: Path) -> None:
    sick, sound = run_id(store, "reasoning_rl-0.7"), run_id(store, "reasoning_rl-0.1")
    assert read_run(Tracking(), store, "reasoning_rl").run_id == sound
    for begun in (sick, sick[:8]):
        run = read_run(Tracking(), store, begun)
        assert (run.run_id, run.stage, run.params["reasoning_rl.health.max_kl"]) == (sick, "reasoning_rl", "0.5")
    steps = dict(run.steps)
    assert list(steps) == [1, 2, 3, 4, 5, 6]
    assert steps[5] == {"kl": 0.7, "loss": 0.0}
    assert steps[6]["kl"] == math.inf
    assert math.isnan(steps[6]["loss"])


@pytest.mark.slow
def test_a_member_of_a_group_is_found_by_its_name(store: Path) -> None:
    run = read_run(Tracking(), store, "distillation@small-2")
    assert (run.stage, run.params) == ("distillation@small-2", {"distillation.students.small-2.train.steps": "3"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("general_rl", "general_rl: no run; .* one of curation, distillation@small-2, reasoning_rl"),
        ("f00dfeedf00d", "f00dfeedf00d: no run; .* one of curation, distillation@small-2, reasoning_rl"),
        ("'; --", "must be a stage or the beginning of a run's id"),
        ("", "must be a stage or the beginning of a run's id"),
    ],
)
def test_an_unknown_run_is_refused(store: Path, run: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_run(Tracking(), store, run)


@pytest.mark.slow
def test_a_beginning_that_fits_several_runs_is_refused(store: Path) -> None:
    client = MlflowClient(f"sqlite:///{store}/runs/mlflow/mlflow.db")
    digits = [client.create_run("1").info.run_id[0] for _ in range(17)]  # two of them share one of the 16
    shared = max(digits, key=digits.count)
    with pytest.raises(InputError, match=f"{shared}: several runs begin so"):
        read_run(Tracking(), store, shared)


def test_where_nothing_has_run_there_is_no_run_and_no_store_afterwards(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing has run"):
        read_run(Tracking(), tmp_path, "base")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def project(flow_project: FlowProject, store: Path, monkeypatch: pytest.MonkeyPatch) -> FlowProject:
    """A project whose runs are those of the store."""
    with (flow_project.root / "params.yaml").open("a") as text:
        text.write(f"tracking: {{uri: 'sqlite:///{store}/runs/mlflow/mlflow.db'}}\n")
    monkeypatch.chdir(flow_project.root)
    return flow_project


@pytest.mark.slow
def test_the_doctor_shows_what_it_finds_in_a_run(project: FlowProject, store: Path) -> None:
    sick = run_id(store, "reasoning_rl-0.7")
    result = CliRunner().invoke(cli.app, ["doctor", sick[:12]])
    assert result.exit_code == 1
    assert f"reasoning_rl, run {sick[:8]}, 6 steps: conditions found" in result.output
    words = " ".join(result.output.replace("│", " ").split())
    assert all(word in words for word in ("3 to 5", "KL blow-up", "max_kl", "broken", "kl_coefficient"))


@pytest.mark.slow
def test_the_doctor_says_that_a_run_was_healthy(project: FlowProject) -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "reasoning_rl"])
    assert (result.exit_code, result.output.count("\n")) == (0, 1)
    assert result.output.endswith("5 steps: healthy\n")


@pytest.mark.slow
def test_a_run_without_figures_is_not_called_healthy(project: FlowProject) -> None:
    with pytest.raises(InputError, match="of stage curation has no step to examine: it trains nothing"):
        check_up(project.root, "curation")


def test_a_run_is_examined_without_torch() -> None:
    program = "import sys, pipeline.checkup; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
