"""What the page is made from: stages, models, curves, samples."""

from pathlib import Path

import pytest

from pipeline.params import Tracking
from pipeline.report import curves
from pipeline.report.curves import read_curves, thinned
from pipeline.report.models import evaluated, final, funnel
from pipeline.report.project import lineage, parents, read_project
from pipeline.report.samples import read_samples
from pipeline.tracking import Recorded
from tests.unit.report.conftest import MODELS, add_stage, write


def test_stages_stand_after_what_they_need_and_groups_are_taken_apart(project: Path) -> None:
    stages = {stage.name: stage for stage in read_project(project)}
    assert list(stages) == [
        "curation", "base", "cold_start", "general_rl",
        "distillation@default", "distillation@dense", "distillation@small", "evaluation",
    ]  # fmt: skip
    assert stages["general_rl"].needs == ("base", "cold_start")
    assert stages["distillation@small"].model == "distillation/small"
    assert "distillation@small" in stages["evaluation"].needs  # its dependency is the folder of all students
    assert stages["distillation@small"].metrics["parameters"] == 7_393_600
    assert (stages["distillation@default"].ending, stages["evaluation"].ending) == ("not run", "failed")


def test_a_model_comes_from_the_last_one_that_its_stage_reads(project: Path) -> None:
    assert parents(read_project(project), set(MODELS)) == {
        "cold_start": "base",
        "general_rl": "cold_start",
        "distillation/dense": "general_rl",
        "distillation/small": "general_rl",
    }


def test_gains_and_costs_of_models(project: Path) -> None:
    models = {model.name: model for model in evaluated(read_project(project))}
    final = models["general_rl"]
    assert final.gained == pytest.approx(17.25)
    assert (final.money, final.money_in_all) == (1.0, 4.0)  # curation, base, cold start and its own
    assert final.money_per_point == pytest.approx(1 / 17.25)
    assert models["distillation/small"].gained == pytest.approx(-7.25)
    assert models["distillation/small"].money_per_point is None
    assert models["base"].parent is None
    assert final.tasks == {"sum": "general_rl.sum.pass_at_1"}


def test_the_final_model_is_no_student(project: Path) -> None:
    models = evaluated(read_project(project))
    assert final(models) is models[0]
    last, students = final(models[1:]), [model for model in models if "/" in model.name]
    assert last is not None
    assert last.name == "cold_start"
    assert final(students) is students[0]
    assert final([]) is None


def test_costs_that_are_not_known_are_not_made_up(project: Path) -> None:
    (project / "runs" / "base" / "k" / "cost.json").unlink()
    models = {model.name: model for model in evaluated(read_project(project))}
    assert models["base"].money is None
    assert models["general_rl"].money_in_all is None


def test_the_funnel_is_curations_own_count(project: Path) -> None:
    assert funnel(read_project(project)) == {
        "read": {"sums": 41}, "quarantined": {"language": 1}, "train": {"sum": 40}, "evaluation": {},
        "problems": 40, "pairs": 0, "traces": 5,
    }  # fmt: skip


def test_lineage_is_what_dvc_has_locked(project: Path) -> None:
    assert lineage(project, read_project(project)) == []
    write(
        project / "dvc.lock",
        "stages:\n  base: {cmd: a, deps: [{path: pipeline/job.py, md5: a}, {path: artifacts/x, md5: b}],"
        " outs: [{path: artifacts/base/model, md5: c.dir}]}\n",
    )
    assert lineage(project, read_project(project)) == [
        {"stage": "base", "key": "k", "reads": [["artifacts/x", "b"]], "writes": [["artifacts/base/model", "c.dir"]]}
    ]


def test_curves_take_a_steps_last_word_and_leave_out_clocks(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (
        (1, {"loss": 3.0, "tokens_per_s": 9.0, "rollout_s": 1.0}),
        (2, {"loss": 2.0, "kl": float("inf")}),
        (2, {"loss": 1.0, "kl": 0.1}),
        (3, {"loss": 0.5, "kl": 0.2}),
    )
    (project / "runs" / "mlflow").mkdir(parents=True)
    monkeypatch.setattr(curves, "read_run", lambda options, root, run: Recorded("r", run, {}, steps))
    read = read_curves(Tracking(), project, read_project(project))
    assert read["base"] == {"loss": [(1, 3.0), (2, 1.0), (3, 0.5)], "kl": [(2, 0.1), (3, 0.2)]}


def test_long_curves_are_means_of_neighbours() -> None:
    points = [(step, float(step)) for step in range(1000)]
    thin = thinned(points, 100)
    assert len(thin) == 100
    assert thin[0] == (4.5, 4.5)
    assert thinned(points[:50], 100) == points[:50]


def test_samples_fit_into_their_bound_and_say_how_many_there_are(project: Path) -> None:
    everything = read_samples(project)
    assert everything is not None
    assert (len(everything["problems"]), everything["problems_in_all"]) == (40, 40)
    assert everything["problems"][3]["answers"]["general_rl"][0] == ["because", "4", True, 9, True, "right"]
    few = read_samples(project, most=6000)
    assert few is not None
    assert 0 < len(few["problems"]) < 12
    assert few["problems_in_all"] == 40


def test_a_stage_that_failed_before_its_figures_is_there(project: Path) -> None:
    add_stage(project, "distillation@default", {}, error="no such model")
    stage = next(stage for stage in read_project(project) if stage.name == "distillation@default")
    assert stage.ending == "failed"
