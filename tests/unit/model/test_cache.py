"""Decoding with a cache against whole forwards: the same sums, whatever is cached and however runs are mixed."""

import pytest
import torch
from torch import Tensor

from pipeline.model.attention import PackedSequences
from pipeline.model.cache import SlotCache, grouped_attention, latent_attention
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder

from .reference import CASES, config_of, decoder, positions_of, random_sequences

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def cache_of(case: str, slots: int = 5, max_length: int = 40) -> SlotCache:
    return SlotCache(ModelConfig.from_hf(config_of(case)), slots, max_length, torch.float32, "cpu")


def hidden(model: Decoder, sequences: list[Tensor]) -> list[Tensor]:
    lengths = [len(sequence) for sequence in sequences]
    output = model(torch.cat(sequences), positions_of(lengths), PackedSequences(lengths))
    return list(output.hidden.split(lengths))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_decoding_is_the_whole_forward_in_every_mixture_of_runs(case: str) -> None:
    model, cache = decoder(case), cache_of(case)
    sequences = random_sequences([30, 24, 35])
    expected = hidden(model, sequences)
    held = [0, 0, 0]
    # Row 0 starts alone, row 1 while it decodes, row 2 in the last slot while both do.
    for step in range(20):
        decoding = sum(length > 0 for length in held[:2])
        starting = {0: [(0, 9)], 3: [(1, 1)], 7: [(4, 15)]}.get(step, [])
        tokens = [sequences[row][held[row]][None] for row in range(decoding)]
        tokens += [sequences[min(row, 2)][:length] for row, length in starting]
        positions = cache.begin(torch.tensor(held[:decoding], dtype=torch.int64), max(held), starting)
        output = model(torch.cat(tokens), positions, cache).hidden
        for row in range(decoding):
            torch.testing.assert_close(output[row], expected[row][held[row]], **CLOSE)
            held[row] += 1
        for row, length in starting:
            torch.testing.assert_close(output[decoding:], expected[min(row, 2)][:length], **CLOSE)
            held[min(row, 2)] = length if row < 2 else 0
    # The third moves from its slot to the first, and goes on there.
    cache.copy([4], [0], 15)
    for length in range(15, 35):
        output = model(sequences[2][length][None], cache.begin(torch.tensor([length]), length), cache).hidden
        torch.testing.assert_close(output[0], expected[2][length], **CLOSE)


@pytest.mark.parametrize("case", ["deepseek-plain", "llama-grouped"])
@torch.no_grad()
def test_what_was_read_starts_other_rows(case: str) -> None:
    model, cache = decoder(case), cache_of(case)
    (sequence,) = random_sequences([12])
    model(sequence[:11], cache.begin(torch.empty(0, dtype=torch.int64), 0, [(3, 11)]), cache)
    cache.write(slice(0, 2), cache.read(3, 11))
    output = model(sequence[11].repeat(2), cache.begin(torch.tensor([11, 11]), 11), cache).hidden
    torch.testing.assert_close(output, hidden(model, [sequence])[0][11].expand(2, -1), **CLOSE)


def test_latent_attention_keeps_the_compressed_latent_alone() -> None:
    latent, rotary, layers = 16, 8, 3  # of the reference
    assert cache_of("deepseek-yarn", slots=5, max_length=40).nbytes == 4 * layers * 5 * 40 * (latent + rotary)
    assert cache_of("llama-grouped", slots=5, max_length=40).nbytes == 4 * layers * 5 * 40 * 2 * (2 * 8)


@pytest.mark.parametrize("case", ["deepseek-yarn", "llama-grouped"])
def test_a_slot_takes_its_share_of_the_cache(case: str) -> None:
    config = ModelConfig.from_hf(config_of(case))
    assert SlotCache.slot_bytes(config, 40, torch.float32) * 5 == cache_of(case, slots=5, max_length=40).nbytes


def test_a_full_row_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="the cache of 40 tokens a row is full"):
        cache_of("llama-grouped").begin(torch.tensor([40]), 40)


def test_latent_attention_against_a_loop() -> None:
    query, cache, lengths = torch.randn(3, 4, 10), torch.randn(3, 9, 10), torch.tensor([1, 9, 4])
    out = latent_attention(query, cache, lengths, rank=7, scale=0.3)
    for row, length in enumerate(lengths.tolist()):
        weights = (0.3 * query[row] @ cache[row, :length].T).softmax(-1)
        torch.testing.assert_close(out[row], weights @ cache[row, :length, :7])


def test_grouped_attention_against_a_loop() -> None:
    query, keys, values = torch.randn(3, 4, 8), torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 6)
    lengths = torch.tensor([1, 9, 4])
    out = grouped_attention(query, keys, values, lengths, scale=0.3)
    for row, length in enumerate(lengths.tolist()):
        for head in range(4):
            weights = (0.3 * keys[row, head // 2, :length] @ query[row, head]).softmax(-1)
            torch.testing.assert_close(out[row, head], weights @ values[row, head // 2, :length])
