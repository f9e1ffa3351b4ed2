"""Which models are found, in which order, and what they are compared with."""

from pathlib import Path

from pipeline.evaluation.models import final, find_models

WHOLE = [
    "artifacts/base/model",
    "artifacts/cold_start/model",
    "artifacts/curation/problems.parquet",
    "artifacts/distillation",
    "artifacts/general_rl/model",
    "artifacts/general_sft/model",
    "artifacts/preference/model",
    "artifacts/reasoning_rl/model",
    "pipeline/model",
]


def test_the_whole_recipe_the_final_model_first(tmp_path: Path) -> None:
    for student in ("small", "large", "former"):
        (tmp_path / "artifacts" / "distillation" / student / "model").mkdir(parents=True)
    (tmp_path / "artifacts" / "distillation" / "unfinished").mkdir()
    students = ("unfinished", "small", "large")  # of the params; there was another one before
    models = find_models(tmp_path, WHOLE, students)
    assert {entry.name: entry.references for entry in models} == {
        "general_rl": ("general_sft",),
        "distillation/large": ("general_rl",),
        "distillation/small": ("general_rl",),
        "general_sft": ("reasoning_rl", "base"),
        "reasoning_rl": ("cold_start", "base"),
        "cold_start": ("base",),
        "base": (),
    }
    assert [entry.name for entry in models][:2] == ["general_rl", "distillation/large"]
    assert models[1].folder == tmp_path / "artifacts" / "distillation" / "large" / "model"
    assert final(models).name == "general_rl"
    assert find_models(tmp_path, reversed(WHOLE), reversed(students)) == models


def test_a_part_of_the_recipe_is_compared_with_what_is_there(tmp_path: Path) -> None:
    models = find_models(tmp_path, ["artifacts/base/model", "artifacts/general_sft/model", "artifacts/dense/model"], ())
    assert [(entry.name, entry.references) for entry in models] == [
        ("general_sft", ("base",)),
        ("base", ()),
        ("dense", ()),
    ]
