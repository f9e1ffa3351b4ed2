"""Who trains on which pair, and that length cannot stand in for quality."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.preference.pairs import BalancedPairs, Pair, split_pairs
from pipeline.records import is_held_out

from .toys import TOKENIZER, pairs, table


def pair(chosen: int, rejected: int) -> Pair:
    return Pair(np.ones(chosen, dtype=np.int64), np.zeros(rejected, dtype=np.int64))


LENGTHS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 20), st.integers(0, 3))
def test_an_epoch_has_as_many_longer_as_shorter_chosen_answers(
    lengths: list[tuple[int, int]], per_step: int, seed: int
) -> None:
    made = [pair(*both) for both in lengths]
    longer, shorter = (sum(sign * each.longer > 0 for each in made) for sign in (1, -1))
    if bool(longer) != bool(shorter):
        with pytest.raises(InputError, match="would learn length"):
            BalancedPairs(made, per_step, seed)
        return
    line = BalancedPairs(made, per_step, seed)
    steps = -(-len(line) // per_step)
    epoch = [each for step in range(steps) for each in line[step]][: len(line)]
    kinds = Counter(int(np.sign(each.longer)) for each in epoch)
    assert kinds[1] == kinds[-1] == max(longer, shorter)
    times = Counter(id(each) for each in epoch)
    assert set(times) == {id(each) for each in made}  # nobody is left out
    for sign in (1, -1):
        of_kind = [times[id(each)] for each in made if np.sign(each.longer) == sign]
        assert not of_kind or max(of_kind) - min(of_kind) <= 1  # nor drawn much more often than others of the kind


def test_a_step_is_a_function_of_its_number() -> None:
    made = pairs()
    first, second = BalancedPairs(made, 7, seed=3), BalancedPairs(made, 7, seed=3)
    forward = [first[step] for step in range(20)]
    assert [second[step] for step in reversed(range(20))] == forward[::-1]
    assert [id(each) for each in BalancedPairs(made, 7, seed=4)[0]] != [id(each) for each in forward[0]]


def test_no_prompt_is_in_two_parts() -> None:
    rows = table(200)
    split = split_pairs(TOKENIZER, rows, 5, 0.2, 512)
    held_out = [is_held_out(prompt, 5, 0.2) for prompt in rows["prompt"]]
    assert len(split.held_out) == sum(held_out) > 20
    assert len(split.first) + len(split.second) + len(split.held_out) == 200
    assert 50 < len(split.first) < 110
    texts = [{bytes(each.chosen) for each in part} for part in (split.held_out, split.first, split.second)]
    assert not (texts[0] & texts[1])
    assert not (texts[0] & texts[2])
    assert not (texts[1] & texts[2])


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="2 pairs: too few"):
        split_pairs(TOKENIZER, table(2), 0, 0.2, 512)


def test_a_text_that_is_too_long_for_the_model_is_refused() -> None:
    longest = max(len(text) for pair in pairs() for text in (pair.chosen, pair.rejected))
    split_pairs(TOKENIZER, table(60), 0, 0.2, longest)
    with pytest.raises(InputError, match=rf"an answer of {longest} tokens .* max_position_embeddings = {longest - 1};"):
        split_pairs(TOKENIZER, table(60), 0, 0.2, longest - 1)


def test_a_text_is_the_prompt_and_the_answer_without_thinking_to_the_end() -> None:
    text = TOKENIZER.decode(pairs(1)[0].chosen)
    assert text.startswith("<bos><|user|>ask 0<|assistant|><think></think><answer>a")
    assert text.endswith("!</answer><eos>")
