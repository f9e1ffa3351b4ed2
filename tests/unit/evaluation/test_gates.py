"""Which model passes, and what a failed gate says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.evaluation.gates import Gate, champion_gate, stage_gates
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.metrics import per_problem
from pipeline.evaluation.models import Entry, find_models
from pipeline.params import Champion, ModelGates
from tests.unit.evaluation.tables import judged


def _gates(models: Mapping[str, Sequence[str]], options: Mapping[str, Any], tmp_path: Path) -> dict[str, Gate]:
    deps = [f"artifacts/{name}/model" for name in models if "/" not in name]
    for name in models:
        if "/" in name:
            (tmp_path / "artifacts" / name / "model").mkdir(parents=True)
            deps.append("artifacts/distillation")
    problems = per_problem(judged(models))
    students = [name.partition("/")[2] for name in models if "/" in name]
    gates = stage_gates(find_models(tmp_path, deps, students), problems, ModelGates.model_validate(options), seed=0)
    return {gate.model: gate for gate in gates}


GOOD, BAD = ["rr"] * 8 + ["rw"] * 2, ["ww"] * 7 + ["rw"] * 3


def test_the_dip_of_the_cold_start_passes_and_the_same_fall_of_rl_does_not(tmp_path: Path) -> None:
    lower = ["rr"] * 7 + ["rw", "ww", "ww"]  # 75 % after 90 %
    gates = _gates({"base": GOOD, "cold_start": lower}, {}, tmp_path)
    assert gates["cold_start"].passed
    gates = _gates({"cold_start": GOOD, "reasoning_rl": lower}, {}, tmp_path)
    assert not gates["reasoning_rl"].passed


def test_a_failed_gate_says_which_against_what_by_how_much_and_by_which_rule(tmp_path: Path) -> None:
    gate = _gates({"cold_start": GOOD, "reasoning_rl": BAD}, {}, tmp_path)["reasoning_rl"]
    text = str(gate)
    assert text.startswith(
        "reasoning_rl has pass@1 15.0%, cold_start 90.0% on the same 10 problems: −75.0 points against it, "
        "95 % interval −100.0 to −50.0; "
    )
    assert text.endswith("rule: the mean not below 0.0 (evaluation.gates.stages.reasoning_rl.fall)")


def test_no_floor_no_gate(tmp_path: Path) -> None:
    assert _gates({"base": GOOD, "cold_start": BAD}, {"stages": {}}, tmp_path) == {}
    students = {"general_rl": GOOD, "distillation/small": BAD}
    assert _gates(students, {"students": None}, tmp_path) == {}


def test_general_sft_is_held_to_the_model_that_wrote_its_set(tmp_path: Path) -> None:
    gates = _gates({"base": BAD, "reasoning_rl": GOOD, "general_sft": BAD}, {}, tmp_path)
    assert gates["general_sft"].reference == "reasoning_rl"
    assert not gates["general_sft"].passed


@pytest.mark.parametrize(("keep", "passed"), [(0.83, True), (0.84, False)])
def test_a_student_keeps_its_share_of_the_teacher(keep: float, passed: bool, tmp_path: Path) -> None:
    models = {"general_rl": GOOD, "distillation/small": ["rr"] * 7 + ["rw"] + ["ww"] * 2}  # 75 % of 90 %: 5/6
    gate = _gates(models, {"students": {"keep": keep}}, tmp_path)["distillation/small"]
    assert gate.passed is passed
    assert f"points against {keep:.0%} of it" in str(gate)


def test_the_lower_bound_asks_for_proof(tmp_path: Path) -> None:
    models = {"cold_start": ["rw"] * 9 + ["rr"], "reasoning_rl": ["rw"] * 8 + ["rr", "ww"]}  # 50 % after 55 %
    for bound, passed in (("mean", True), ("low", False)):
        floor = {"stages": {"reasoning_rl": {"fall": 0.06, "bound": bound}}}
        assert _gates(models, floor, tmp_path)["reasoning_rl"].passed is passed


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_gate_is_a_threshold(mean: float, half: float, fall: float) -> None:
    gates = {
        bound: Gate("a", "b", (0.5, 0.5), 9, 1.0, fall, bound, "key", Interval(mean, mean - half, mean + half))
        for bound in ("mean", "low")
    }
    assert gates["mean"].passed or mean < -fall
    assert not (gates["low"].passed and not gates["mean"].passed)


def test_a_fall_of_just_what_is_allowed_passes(tmp_path: Path) -> None:
    models = {"cold_start": ["r"] * 10, "reasoning_rl": ["r"] * 7 + ["w"] * 3}
    assert _gates(models, {"stages": {"reasoning_rl": {"fall": 0.3}}}, tmp_path)["reasoning_rl"].passed


# ------------------------------------------------------------------------------------------ the champion


def _champion(**options: Any) -> Champion:
    return Champion.model_validate({"samples": "champion.parquet", "digest": "0" * 64, "least": 5, **options})


def _problems(model: str, letters: Sequence[str]) -> pl.DataFrame:
    return per_problem(judged({model: letters}))


FINAL = [Entry("general_rl", Path("model"), ())]


def test_a_worse_model_does_not_take_the_champions_place() -> None:
    gate = champion_gate(FINAL, _problems("general_rl", BAD), _champion(), _problems("general_rl", GOOD), seed=0)
    assert not gate.passed
    assert "the champion's general_rl 90.0% on the same 10 problems: −75.0 points" in str(gate)
    assert "the interval's lower end not below −2.0 (evaluation.champion.margin)" in str(gate)


def test_non_inferiority_has_to_be_shown_and_needs_problems() -> None:
    rng = np.random.default_rng(0)

    def passes(count: int) -> bool:
        ours, theirs = (["".join(rng.choice(["r", "w"], 4, p=[0.8, 0.2])) for _ in range(count)] for _ in range(2))
        problems = [_problems("general_rl", letters) for letters in (ours, theirs)]
        return champion_gate(FINAL, problems[0], _champion(), problems[1], seed=0).passed

    assert not passes(20)
    assert passes(4000)


def test_the_champion_may_have_other_problems_and_more_samples() -> None:
    ours = _problems("general_rl", ["rr"] * 8)
    theirs = _problems("general_rl", ["rrrr"] * 6).with_columns(
        problem_id=pl.Series([f"{place:04}" for place in (0, 1, 2, 3, 4, 99)])
    )
    gate = champion_gate(FINAL, ours, _champion(), theirs, seed=0)
    assert (gate.problems, gate.passed) == (5, True)


def test_too_few_common_problems_prove_nothing() -> None:
    ours, theirs = _problems("general_rl", GOOD), _problems("general_rl", GOOD[:4])
    with pytest.raises(InputError, match=r"4 of its 4 problems are among the 10 of this run: must be at least 5"):
        champion_gate(FINAL, ours, _champion(), theirs, seed=0)


def test_verdicts_of_another_verifier_are_no_comparison() -> None:
    ours = _problems("general_rl", GOOD)
    theirs = ours.with_columns(verifier=pl.lit("numeric 2"))
    with pytest.raises(InputError, match="was judged by verifier numeric 2, here by numeric 1"):
        champion_gate(FINAL, ours, _champion(), theirs, seed=0)
