import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.training.batches import Example, Steps, micro_batches, pack


def example(first: int, length: int, prompt: int = 0) -> Example:
    """Tokens first, first + 1, …; the first `prompt` of them do not count."""
    return Example(np.arange(first, first + length), np.arange(length) >= prompt)


def names(examples: list[Example]) -> list[int]:
    return [int(item.tokens[0]) for item in examples]


def data(lengths: list[int]) -> list[Example]:
    return [example(1000 * index, length) for index, length in enumerate(lengths)]


lengths = st.lists(st.integers(2, 40), min_size=1, max_size=30)


def test_pack_lays_examples_end_to_end_without_padding():
    batch = pack([example(10, 3), example(20, 5, prompt=3)])
    assert batch.tokens.tolist() == [10, 11, 20, 21, 22, 23]
    assert batch.positions.tolist() == [0, 1, 0, 1, 2, 3]
    assert batch.lengths == (2, 4)
    assert batch.predictors.tolist() == [0, 1, 4, 5]
    assert batch.targets.tolist() == [11, 12, 23, 24]


@given(lengths)
def test_every_predictor_stands_before_its_target(lengths: list[int]):
    batch = pack([example(1000 * index, length, prompt=length // 2) for index, length in enumerate(lengths)])
    assert (batch.targets == batch.tokens[batch.predictors] + 1).all()
    assert len(batch.targets) == sum(length - max(1, length // 2) for length in lengths)


@given(lengths, st.integers(0, 3))
def test_steps_walk_through_whole_epochs(lengths: list[int], seed: int):
    budget = max(40, sum(lengths) // 3)
    steps = Steps(data(lengths), budget, seed)
    walked = [name for step in range(3 * sum(lengths) // budget + 1) for name in names(steps[step])]
    for epoch in range(3):
        part = walked[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(part) == [1000 * index for index in range(len(lengths))]


@given(lengths, st.integers(0, 50))
def test_a_step_is_never_empty_and_exceeds_its_budget_by_less_than_one_example(lengths: list[int], step: int):
    budget = max(lengths)
    chosen = Steps(data(lengths), budget, seed=0)[step]
    assert 0 < sum(map(len, chosen)) < budget + max(lengths)


def test_steps_use_the_whole_budget_on_average():
    rng = np.random.default_rng(0)
    steps = Steps(data(rng.integers(25, 90, size=500).tolist()), 1024, seed=0)
    assert sum(len(item) for step in range(100) for item in steps[step]) == pytest.approx(100 * 1024, rel=1e-3)


def test_order_depends_on_seed_and_epoch_alone():
    items = data([10] * 50)
    first, again, other = Steps(items, 500, 1), Steps(items, 500, 1), Steps(items, 500, 2)
    assert names(again[7]) == names(first[7])  # asked in any order
    assert names(first[0]) != names(first[1])
    assert names(first[0]) != names(other[0])


def test_too_long_an_example_is_refused():
    with pytest.raises(InputError, match=r"tokens_per_step = 40: .* 41 tokens"):
        Steps(data([10, 41]), 40, seed=0)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(InputError, match="no examples"):
        Steps([], 40, seed=0)


@given(lengths, st.integers(1, 100))
def test_micro_batches_hold_every_example_once_within_their_bound(lengths: list[int], bound: int):
    batches = [batch for batch, _ in micro_batches(data(lengths), bound)]
    assert sorted(length for batch in batches for length in batch.lengths) == sorted(length - 1 for length in lengths)
    assert all(len(batch.lengths) == 1 or len(batch.tokens) <= bound for batch in batches)
