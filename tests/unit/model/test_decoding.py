"""A decoding step in one call against the decoder, and against itself in other company and with other threads."""

import pytest
import torch
from torch import Tensor

from pipeline.model import native
from pipeline.model.cache import SlotCache
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.decoding import LARGEST, NativeDecoding

from .reference import CASES, config_of, decoder

LENGTHS = [30, 1, 17, 4, 39, 2, 8, 16, 15, 31, 5, 6, 7, 23, 11, 9, 10, 12, 13, 14]  # more than one vector of rows


def begun(case: str) -> tuple[Decoder, SlotCache]:
    """A cache of 45 tokens a row, full of noise, and the model."""
    cache = SlotCache(ModelConfig.from_hf(config_of(case)), len(LENGTHS), 45, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(5)
    for plane in cache.planes:
        plane.copy_(torch.randn(plane.shape, generator=generator))
    return decoder(case), cache


def native_decoding(model: Decoder, cache: SlotCache, *, bfloat16: bool = False) -> NativeDecoding:
    found = NativeDecoding.of(model, cache, bfloat16=bfloat16)
    assert found is not None
    found.refresh()
    return found


def drawn(rows: int) -> Tensor:
    return torch.randint(0, 61, (rows,), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_two_steps_are_those_of_the_decoder(case: str) -> None:
    model, cache = begun(case)
    for parameter in model.parameters():  # biases are 0 and gains 1 at the start
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    other = begun(case)[1]
    decoding, lengths = native_decoding(model, cache), torch.tensor(LENGTHS)
    for _ in range(2):
        tokens = drawn(len(lengths))
        logits, experts = decoding.run(tokens, lengths)
        output = model(tokens, other.begin(lengths, int(lengths.max())), other)
        torch.testing.assert_close(logits, model.logits(output.hidden), atol=1e-4, rtol=1e-4)
        assert len(experts) == len(output.routing)
        for chosen, routing in zip(experts, output.routing, strict=True):
            assert torch.equal(chosen, routing.experts)
        for mine, theirs in zip(cache.planes, other.planes, strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)
        lengths = lengths + 1


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_step_in_bfloat16_is_that_of_the_decoder_under_autocast(case: str) -> None:
    model, cache = begun(case)
    other = begun(case)[1]
    lengths, tokens = torch.tensor(LENGTHS), drawn(len(LENGTHS))
    logits, experts = native_decoding(model, cache, bfloat16=True).run(tokens, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(tokens, other.begin(lengths, int(lengths.max())), other)
    expected, wide = model.logits(output.hidden), native_decoding(*begun(case)).run(tokens, lengths)[0]
    # Rounding moves a few tokens to another expert.
    same = torch.tensor([True] * len(tokens))
    for chosen, routing in zip(experts, output.routing, strict=True):
        same &= (chosen.sort(1).values == routing.experts.sort(1).values).all(1)
    assert same.float().mean() >= 0.7
    assert (logits - expected)[same].abs().mean() < 0.02
    assert not torch.equal(logits, wide)


@torch.no_grad()
def test_in_bfloat16_a_refresh_takes_in_what_has_become_of_the_experts() -> None:
    model, cache = begun("deepseek-plain")
    decoding, lengths, tokens = native_decoding(model, cache, bfloat16=True), torch.tensor(LENGTHS), drawn(len(LENGTHS))
    before = decoding.run(tokens, lengths)[0]
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.mul_(-1.0)
    decoding.refresh()
    after = decoding.run(tokens, lengths)[0]
    assert not torch.equal(after, before)
    assert torch.equal(after, native_decoding(model, cache, bfloat16=True).run(tokens, lengths)[0])


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("case", ["deepseek-query-latent-groups", "qwen3-moe", "llama-biases-tied"])
@torch.no_grad()
def test_the_bits_depend_neither_on_the_company_nor_on_the_threads(case: str, bfloat16: bool) -> None:
    model, cache = begun(case)
    decoding = native_decoding(model, cache, bfloat16=bfloat16)
    lengths, tokens = torch.tensor(LENGTHS), drawn(len(LENGTHS))
    whole, experts = decoding.run(tokens, lengths)
    before = torch.get_num_threads()
    for threads, rows in ((1, 20), (2, 20), (3, 20), (2, 16), (2, 5), (1, 1)):
        torch.set_num_threads(threads)
        logits, chosen = decoding.run(tokens[:rows], lengths[:rows])
        assert torch.equal(logits, whole[:rows])
        assert torch.equal(chosen, experts[:, :rows])
    torch.set_num_threads(before)


@torch.no_grad()
def test_it_follows_weights_that_change_or_move() -> None:
    model, cache = begun("deepseek-plain")
    decoding, lengths, tokens = native_decoding(model, cache), torch.tensor(LENGTHS), drawn(len(LENGTHS))
    before = decoding.run(tokens, lengths)[0]
    model.norm.weight.mul_(2.0)
    torch.testing.assert_close(decoding.run(tokens, lengths)[0], 2 * before)
    model.norm.weight.data = model.norm.weight / 4
    torch.testing.assert_close(decoding.run(tokens, lengths)[0], before / 2)
    model.cast(torch.bfloat16)
    with pytest.raises(AssertionError, match="no longer of the type"):
        decoding.run(tokens, lengths)


def test_only_what_the_kernel_takes_and_gains_by(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = begun("llama-grouped")
    assert NativeDecoding.of(model, cache) is not None
    assert NativeDecoding.of(decoder("llama-grouped").cast(torch.bfloat16), cache) is None
    large = Decoder(ModelConfig.from_hf(config_of("llama-grouped") | {"intermediate_size": LARGEST // 64 + 1}))
    assert NativeDecoding.of(large, cache) is None
    monkeypatch.setattr(native, "library", lambda: None)
    assert NativeDecoding.of(model, cache) is None


def test_a_full_row_is_a_bug() -> None:
    model, cache = begun("llama-grouped")
    with pytest.raises(AssertionError, match="the cache of 45 tokens a row is full"):
        native_decoding(model, cache).run(torch.tensor([1]), torch.tensor([45]))
