import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import process, world
from pipeline.world import deal


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 6))
def test_every_item_is_dealt_once_and_no_hand_is_dearer_by_more_than_an_item(costs: list[int], hands: int) -> None:
    held = deal(costs, hands)
    assert len(held) == hands
    assert sorted(place for hand in held for place in hand) == list(range(len(costs)))
    assert all(hand == sorted(hand) for hand in held)
    sums = [sum(costs[place] for place in hand) for hand in held]
    assert max(sums) - min(sums) <= max(costs, default=0)


def test_alone_nothing_is_shared_and_nothing_is_copied() -> None:
    assert world.world().alone
    assert world.world().leads
    figures = torch.ones(2)
    assert world.total(figures) is figures
    assert world.largest(figures) is figures
    assert world.gathered("said") == ["said"]
    assert world.led(len) is len


def test_a_process_that_torchrun_did_not_start_is_alone_whatever_others_put_into_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert process.rank() == 0
    world.world.cache_clear()
    assert world.world().alone


@pytest.mark.slow
def test_one_process_that_trains_imports_no_deepspeed_and_joins_no_group() -> None:
    program = (
        "import sys, tempfile, pathlib; from tests.unit.training import test_loop as t; "
        "import torch.distributed as dist; "
        "t.run(pathlib.Path(tempfile.mkdtemp()), t.decoder(), t.options(steps=2)); "
        "assert 'deepspeed' not in sys.modules; assert not dist.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True, timeout=120)
