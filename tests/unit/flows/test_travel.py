"""What of a stage travels between machines, and how params are overridden there."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from flows.report import Outcome
from flows.travel import Record, outputs_read, override, place, read_lock, read_record, sort_lock
from pipeline.cost import account_file
from pipeline.errors import InputError
from pipeline.files import write_json
from pipeline.job import read_yaml
from pipeline.params import load_params
from pipeline.state import Attempt, read_state
from tests.project import PARAMS

LOCK = {"cmd": "python stage.py first", "outs": [{"path": "artifacts/first/out", "md5": "ab", "size": 5}]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


def test_a_record_tells_another_machine_all_that_this_one_knows(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with Attempt(here, "first") as attempt:
        attempt.update(key="k", metrics={"right": 0.5})
    write_json(account_file(here, "first", "k"), {"money": 1.5})
    place(here, {"first": Record(LOCK, None, None), "aside": Record({"cmd": "x"}, None, None)})

    travelled = json.loads(json.dumps(asdict(read_record(here, "first", Outcome("first", "ran", 1.0)))))
    place(there, {"first": Record(**travelled)})

    assert read_lock(there) == {"first": LOCK}
    assert read_state(there, "first") == read_state(here, "first")
    assert json.loads(account_file(there, "first", "k").read_text()) == {"money": 1.5}


def test_what_came_out_of_the_cache_has_cost_nothing_and_what_failed_has_no_outputs(tmp_path: Path) -> None:
    with Attempt(tmp_path, "first"):
        pass
    place(tmp_path, {"first": Record(LOCK, None, None)})
    assert read_record(tmp_path, "first", Outcome("first", "fresh")) == Record(LOCK, None, None)
    failed = read_record(tmp_path, "first", Outcome("first", "failed"))
    assert failed.lock == {}
    assert failed.state is not None
    place(tmp_path, {"first": failed})
    assert read_lock(tmp_path) == {"first": LOCK}


def test_the_lock_is_in_the_order_of_the_dag_whichever_stage_ends_first(tmp_path: Path) -> None:
    done = {stage: Record({"cmd": stage}, None, None) for stage in ("first", "aside", "last")}
    place(tmp_path, {stage: done[stage] for stage in ("first", "last")})
    place(tmp_path, done)
    assert list(read_lock(tmp_path)) == ["first", "aside", "last"]
    sort_lock(tmp_path, ["last", "absent", "first"])
    assert list(read_lock(tmp_path)) == ["last", "first", "aside"]


def test_a_lock_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("stages: {first: [}\n")
    with pytest.raises(InputError, match=r"dvc\.lock"):
        read_lock(tmp_path)


def test_a_stage_reads_outputs_that_are_or_contain_or_lie_in_its_deps() -> None:
    records = {
        name: Record(
            {"outs": [{"path": f"artifacts/{name}/model"}, {"path": f"artifacts/{name}/metrics.json"}]}, None, None
        )
        for name in ("base", "group/one", "base2")
    }
    deps = ["artifacts/base/model", "artifacts/group", "artifacts/base2/model/config.json", "pipeline/base"]
    assert outputs_read(deps, records) == [
        "artifacts/base/model",
        "artifacts/group/one/model",
        "artifacts/group/one/metrics.json",
        "artifacts/base2/model",
    ]


def test_overrides_change_what_they_name_and_nothing_that_shares_its_anchor(root: Path) -> None:
    before = load_params(root / "params.yaml")
    override(root, {"seed": 7, "base.source": "other", "machine.budget": {"hours": 2.0}})
    after = load_params(root / "params.yaml")
    assert after.seed == 7
    assert after.machine.budget is not None
    params = read_yaml(root / "params.yaml")
    assert params["base"]["source"] == "other"
    assert params["distillation"]["students"]["little"]["base"]["source"] == "model"
    assert after.evaluation == before.evaluation


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sead": 7}, "sead"),
        ({"reasoning_rl.train.stepz": 7}, r"reasoning_rl\.train\.stepz"),
        ({"seed.deep": 7}, "seed.deep: 7: lies in no section"),
        ({"seed": "7"}, "seed: '7'"),
        ({"workers": {}}, "needs tracking.uri"),
        ({"tracking.uri": "http://m", "workers": {}, "machine.store": "runs/store"}, "machine.store: 'runs/store'"),
        ({"tracking.uri": "http://m", "workers": {"pools": {"bass": "gpu"}}}, "no stage 'bass'; there are base"),
        (
            {"tracking.uri": "http://m", "workers": {"pools": {"distillation@big": "gpu"}}},
            "no stage 'distillation@big'",
        ),
    ],
)
def test_a_wrong_override_is_named(root: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(root, values)


def test_a_pool_is_of_a_stage_of_its_group_or_of_all(root: Path) -> None:
    override(root, {"tracking.uri": "http://m", "workers": {"default": "big", "pools": {"distillation": "gpu"}}})
    workers = load_params(root / "params.yaml").workers
    assert workers is not None
    assert [workers.pool(stage) for stage in ("base", "distillation@little")] == ["big", "gpu"]
