import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.ragged import RUNGS, SMALLEST, layout, rungs

sizes_of_groups = st.lists(st.integers(0, 300), min_size=1, max_size=40).filter(any)


@given(sizes_of_groups)
def test_padding_and_taking_back_is_the_identity(sizes: list[int]) -> None:
    blocks = layout(torch.tensor(sizes))
    rows = torch.arange(sum(sizes))
    assert torch.equal(rows[blocks.source][blocks.slots], rows)


@given(sizes_of_groups)
def test_every_block_holds_one_group_and_copies_of_its_last_row(sizes: list[int]) -> None:
    blocks = layout(torch.tensor(sizes))
    starts = [sum(sizes[:group]) for group in range(len(sizes))]
    at, group = 0, 0
    for count, height in blocks.classes:
        for _ in range(count):
            index = int(blocks.order[group])
            own = range(starts[index], starts[index] + sizes[index])
            expected = [own[min(row, len(own) - 1)] for row in range(height)]
            assert blocks.source[at : at + height].tolist() == expected
            at, group = at + height, group + 1
    assert at == len(blocks.source)
    assert sorted(blocks.order.tolist() + blocks.empty.tolist()) == list(range(len(sizes)))
    assert all(sizes[index] == 0 for index in blocks.empty)


@given(st.integers(1, 10**9))
def test_a_rung_holds_its_size_with_a_quarter_of_padding_at_most(size: int) -> None:
    (height,) = rungs(torch.tensor([size])).tolist()
    assert height == SMALLEST or size <= height <= size * (1 + 1 / RUNGS)
    assert height >= size


def test_heights_are_few_and_an_empty_group_has_none() -> None:
    heights = rungs(torch.arange(1025))
    assert heights[0] == 0
    assert len(heights.unique()) == 1 + 1 + 7 * RUNGS  # none, the smallest, four rungs in each doubling from 8 to 1024
