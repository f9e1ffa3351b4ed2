"""The cost of an arm is that of all its stages, wherever they ran."""

from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.cost import Cost
from pipeline.files import write_json
from pipeline.job import Work, identity
from pipeline.studies.definition import workspace
from pipeline.studies.spent import WAY, spent, total


@pytest.fixture
def arm(tmp_path: Path) -> Path:
    folder = workspace(tmp_path, "which", "plain", 1)
    write_json(folder / WAY, ["first", "last"])
    (folder / "dvc.yaml").write_text("stages: {first: {params: [seed]}, last: {params: [seed]}}")
    (folder / "params.yaml").write_text("seed: 1")
    return folder


def _note(place: Path, arm: Path, stage: str, seconds: float, tokens: int) -> None:
    cost = Cost(seconds=seconds, money=seconds / 10, work=Work(trained_tokens=tokens, generated_tokens=1, flops=7))
    write_json(place / "runs" / stage / identity(arm, stage).key / "cost.json", asdict(cost))


def test_a_stage_that_was_restored_costs_what_it_cost_where_it_ran(tmp_path: Path, arm: Path) -> None:
    _note(arm, arm, "last", 2.0, 20)
    _note(tmp_path, arm, "first", 1.0, 10)
    costs = spent(tmp_path, arm)
    assert list(costs) == ["first", "last"]
    sums = total(costs.values())
    assert sums == {
        "seconds": 3.0,
        "money": pytest.approx(0.3),
        "trained_tokens": 30,
        "generated_tokens": 2,
        "flops": 14,
    }


def test_another_arm_s_workspace_is_looked_at_and_its_broken_off_account_is_not_taken(
    tmp_path: Path, arm: Path
) -> None:
    _note(workspace(tmp_path, "other", "a", 1), arm, "first", 0.5, 3)
    _note(workspace(tmp_path, "other", "b", 1), arm, "first", 1.5, 10)
    found = spent(tmp_path, arm)["first"]
    assert found is not None
    assert found.seconds == 1.5


def test_what_nobody_has_an_account_of_makes_the_sum_unknown(tmp_path: Path, arm: Path) -> None:
    _note(arm, arm, "last", 2.0, 20)
    costs = spent(tmp_path, arm)
    assert costs["first"] is None
    assert total(costs.values()) is None
    assert total([costs["last"]]) is not None
