"""Several ranks against one process. Ranks are started once for each size of the world, for all its cases."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.params import Distributed
from pipeline.training import zero
from tests import ranks
from tests.unit.training import on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RELATIVE, ABSOLUTE = 1e-4, 1e-6  # the loss of GRPO comes near to 0, where only the absolute difference has a meaning
PROGRAM = "tests.unit.training.on_ranks"
RESUMED_AT = 8
LEVELS = range(4)
SUPERVISED = [f"sft:sparse:{level}" for level in LEVELS]
REINFORCED = [f"grpo:sparse:{level}" for level in LEVELS]
OFFLOADED = ["sft:sparse:3all"]
ADAPTED = ["sft:adapted:2", "grpo:adapted:1"]
REFUSED = ["refused:sparse:0", "refused:sparse:2", "refused:sparse:3"]
Results = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(folder: Path) -> Results:
    """The figures of each kind in one process."""
    return {kind: on_ranks.run(f"{kind}:sparse:0", folder) for kind in on_ranks.KINDS}


@pytest.fixture(scope="module")
def two(folder: Path) -> Results:
    return ranks.start(PROGRAM, 2, folder, *SUPERVISED, *OFFLOADED, *REINFORCED, *ADAPTED, *REFUSED)


@pytest.fixture(scope="module")
def four(folder: Path, two: Results) -> Results:
    """They also go on from what two ranks saved: `resumed`."""
    resumed = f"sft:sparse:2:{middle(folder, 'sft:sparse:3', 'four-sft')}"
    results = ranks.start(PROGRAM, 4, folder, *SUPERVISED, *REINFORCED, resumed)
    return {**results, "resumed": results[resumed]}


def middle(folder: Path, case: str, name: str) -> Path:
    """A copy of what two ranks of a case left in their middle."""
    kept = folder / f"{case.replace(':', '-')}-2" / f"step-{RESUMED_AT}"
    shutil.copytree(kept, folder / name / kept.name)
    return folder / name


def assert_same(told: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(told) == len(expected) > 0
    for step, (figures, others) in enumerate(zip(told, expected, strict=True)):
        assert figures.keys() == others.keys()
        for name, value in figures.items():
            assert math.isclose(value, others[name], rel_tol=RELATIVE, abs_tol=ABSOLUTE), (step, name, figures, others)


@pytest.mark.parametrize("case", [*SUPERVISED, *OFFLOADED])
def test_two_ranks_train_as_one_process(one: Results, two: Results, case: str) -> None:
    told, weights = two[case]
    assert_same(told, one["sft"][0])
    assert weights == pytest.approx(one["sft"][1], rel=RELATIVE)


@pytest.mark.parametrize("case", SUPERVISED)
def test_four_ranks_train_as_one_process(one: Results, four: Results, case: str) -> None:
    told, weights = four[case]
    assert_same(told, one["sft"][0])
    assert weights == pytest.approx(one["sft"][1], rel=RELATIVE)


@pytest.mark.parametrize("size", ["two", "four"])
@pytest.mark.parametrize("case", REINFORCED)
def test_ranks_reinforce_as_one_process(one: Results, two: Results, four: Results, size: str, case: str) -> None:
    """With two updates a rollout, a reference that is renewed, and the rollout's experts replayed."""
    told, weights = {"two": two, "four": four}[size][case]
    assert_same(told, one["grpo"][0])
    assert told[-1]["reward"] != told[0]["reward"]
    assert weights == pytest.approx(one["grpo"][1], rel=RELATIVE)


@pytest.mark.parametrize("case", ADAPTED)
def test_two_ranks_train_an_adapter_as_one_process(folder: Path, two: Results, case: str) -> None:
    kind = case.partition(":")[0]
    told, weights = two[case]
    expected, others = on_ranks.run(f"{kind}:adapted:0", folder)
    assert_same(told, expected)
    assert weights == pytest.approx(others, rel=RELATIVE)


@pytest.mark.parametrize("case", REFUSED)
def test_an_update_that_is_not_permitted_or_not_finite_is_left_out_on_all_ranks(
    one: Results, two: Results, case: str
) -> None:
    told, weights = two[case]
    assert_same(told, one["refused"][0])
    assert all(step["asked"] == 1 for step in told)
    assert weights == pytest.approx(one["refused"][1], rel=RELATIVE)


@pytest.mark.parametrize("case", ["sft:sparse:1", "grpo:sparse:3"])
def test_what_two_ranks_saved_one_process_goes_on_from(folder: Path, one: Results, two: Results, case: str) -> None:
    kind = case.partition(":")[0]
    told, weights = on_ranks.run(f"{kind}:sparse:0:{middle(folder, case, f'one-{kind}')}", folder)
    assert_same(told, one[kind][0][RESUMED_AT:])
    assert weights == pytest.approx(one[kind][1], rel=RELATIVE)


def test_what_two_ranks_saved_three_go_on_from(folder: Path, one: Results, two: Results) -> None:
    kept = middle(folder, "sft:sparse:3", "three-sft")
    [(told, weights)] = ranks.start(PROGRAM, 3, folder, f"sft:sparse:3:{kept}").values()
    assert_same(told, one["sft"][0][RESUMED_AT:])
    assert weights == pytest.approx(one["sft"][1], rel=RELATIVE)


def test_what_two_ranks_saved_four_go_on_from(one: Results, four: Results) -> None:
    told, weights = four["resumed"]
    assert_same(told, one["sft"][0][RESUMED_AT:])
    assert weights == pytest.approx(one["sft"][1], rel=RELATIVE)


@pytest.mark.parametrize(
    "options",
    [Distributed(ranks=2, zero=level) for level in (0, 1, 2, 3)]
    + [Distributed(ranks=2, zero=2, offload="optimizer"), Distributed(ranks=2, zero=3, offload="all")],
    ids=str,
)
def test_every_base_configuration_leaves_to_params_what_is_theirs(options: Distributed) -> None:
    assert zero.base_config(options)


@pytest.mark.parametrize(
    ("content", "key"),
    [({"gradient_clipping": 1.0}, "gradient_clipping"), ({"zero_optimization": {"stage": 1}}, "stage")],
)
def test_a_base_configuration_that_sets_what_params_decide_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any], key: str
) -> None:
    monkeypatch.setattr(zero, "CONFIGS", tmp_path)
    (tmp_path / "zero0.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"zero0.json: {key}: must not be set here"):
        zero.base_config(Distributed(ranks=2))
