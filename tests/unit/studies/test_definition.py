"""A study file is read strictly, and its arms' params are checked before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.job import at, read_yaml
from pipeline.studies.definition import (
    STUDIES,
    Study,
    arm_params,
    load_study,
    model_folder,
    require_model,
    write_yaml,
)
from tests.project import PARAMS

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(path.stem for path in (ROOT / STUDIES).glob("*.yaml"))
STUDY: dict[str, Any] = {
    "question": "Which?",
    "control": "plain",
    "seeds": [3, 4],
    "arms": {
        "plain": {"model": "cold_start"},
        "more": {"model": "cold_start", "params": {"cold_start.examples": 20, "reasoning_rl.from": "base"}},
    },
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / STUDIES).mkdir(parents=True)
    return tmp_path


def _load(root: Path, **changes: Any) -> Study:
    write_yaml(STUDY | changes, root / STUDIES / "which.yaml")
    return load_study(root, "which")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_study_is_valid_and_so_are_its_arms_params(name: str, tmp_path: Path) -> None:
    study = load_study(ROOT, name)
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    for arm, definition in study.arms.items():
        write_yaml(arm_params(ROOT, name, study, arm, study.seeds[0]), tmp_path / "params.yaml")
        require_model(tmp_path, definition.model)


def test_the_student_that_learns_by_reinforcement_is_the_one_that_is_distilled() -> None:
    study = load_study(ROOT, "distilled_vs_rl")
    _, student = study.arms["distilled"].model.split("@")
    own = at(read_yaml(ROOT / "params.yaml"), f"distillation.students.{student}.base")
    arms = [arm for arm in study.arms.values() if arm.model != study.arms["distilled"].model]
    assert arms
    assert all(arm.params["base"] == own for arm in arms)


def test_there_are_shipped_studies() -> None:
    assert SHIPPED


def test_an_override_takes_the_place_of_its_value_and_leaves_the_rest(root: Path) -> None:
    study = _load(root)
    plain, more = (arm_params(root, "which", study, arm, 4) for arm in ("plain", "more"))
    assert at(plain, "cold_start.examples") == 10
    assert at(more, "cold_start.examples") == 20
    assert at(more, "cold_start.train.steps") == 1
    assert at(more, "reasoning_rl.from") == "base"  # a key that the project leaves to its default
    assert plain["seed"] == more["seed"] == 4


def test_a_mapping_is_replaced_whole(root: Path) -> None:
    base = {
        "kind": "pretrain",
        "model": {"model_type": "llama"},
        "corpus": {"documents": 1, "worked": 1.0, "families": {"sum": 1.0}},
        "train": {"steps": 1, "tokens_per_step": 1, "learning_rate": 0.1},
    }
    study = _load(root, arms=STUDY["arms"] | {"more": {"model": "base", "params": {"base": base}}})
    assert arm_params(root, "which", study, "more", 3)["base"] == base  # without the checkpoint's digest


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("cold_start.exampels", 20, "which.yaml: arms.more.params: cold_start.exampels: 20: there is no such key"),
        ("coldstart.examples", 20, "arms.more.params: coldstart: {'examples': 20}: there is no such key"),
        ("cold_start.examples", 0, "arms.more.params: cold_start.examples: 0: Input should be greater"),
        ("cold_start.examples.few", 1, "arms.more.params.cold_start.examples.few: cold_start.examples is no section"),
    ],
)
def test_an_override_that_the_recipe_does_not_have_is_named(path: str, value: object, message: str, root: Path) -> None:
    study = _load(root, arms=STUDY["arms"] | {"more": {"model": "cold_start", "params": {path: value}}})
    with pytest.raises(InputError) as error:
        arm_params(root, "which", study, "more", 3)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": "none"}, "control: 'none' is not one of the arms more, plain"),
        ({"seeds": []}, "seeds: .*List should have at least 1 item"),
        ({"seeds": [1, 1]}, r"seeds: \[1, 1\]: must differ"),
        ({"seeds": ["1"]}, "seeds.0: .*Input should be a valid integer"),
        ({"arm": {}}, "arm: .*there is no such key"),
        ({"arms": {"plain": {"model": "cold_start"}}}, "arms: .*Dictionary should have at least 2 items"),
        ({"arms": {**STUDY["arms"], "a b": {"model": "base"}}}, r"arms.a b.\[key\]: .*String should match"),
        ({"arms": {**STUDY["arms"], "more": {"model": "../base"}}}, "arms.more.model: .*String should match"),
        (
            {"arms": {**STUDY["arms"], "more": {"model": "base", "params": {"seed": 1}}}},
            "arms.more: params.seed: all arms have seed, held_out",
        ),
    ],
)
def test_a_broken_rule_of_a_study_file_is_named(changes: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(InputError, match=message):
        _load(root, **changes)


def test_an_unknown_study_is_refused_with_those_that_there_are(root: Path) -> None:
    _load(root)
    with pytest.raises(InputError, match=r"what\.yaml: no such study; there are which"):
        load_study(root, "what")


def test_a_stage_without_a_model_is_refused(root: Path) -> None:
    (root / "dvc.yaml").write_text("stages: {base: {outs: [artifacts/base/model]}, curation: {outs: [artifacts/x]}}")
    require_model(root, "base")
    with pytest.raises(InputError, match="curation has no output artifacts/curation/model: it makes no model"):
        require_model(root, "curation")
    with pytest.raises(InputError, match="no stage 'distillation@x'"):
        require_model(root, "distillation@x")
    assert model_folder(root, "distillation@x") == root / "artifacts" / "distillation" / "x" / "model"
