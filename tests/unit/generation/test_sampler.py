"""The sampler against counting and against the definitions of its cuts."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.generation.sampler import Options, sample
from pipeline.model import native

LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
numbers = st.integers(-64, 64).map(lambda eighths: eighths / 8)  # equal, or apart for float32 too


def _options(
    rows: int = 1, temperature: float = 1.0, top_p: float = 1.0, top_k: float = math.inf, min_p: float = 0.0
) -> Options:
    return Options.of(torch.tensor([temperature, top_p, top_k, min_p], dtype=torch.float64)[:, None].expand(4, rows))


def _drawn(logits: Tensor, uniform: list[float], options: Options, cut: bool) -> list[int]:
    drawn, _ = sample(logits, torch.tensor(uniform, dtype=torch.float64), options, torch.full((len(uniform),), cut))
    return drawn.tolist()


def _frequencies(cut: bool, draws: int = 40_000, **settings: float) -> Tensor:
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options, cuts = _options(draws, **settings), torch.full((draws,), cut)
    return sample(LOGITS.expand(draws, -1), uniform, options, cuts)[0].bincount(minlength=4) / draws


def test_frequencies_are_the_softmax() -> None:
    expected = (LOGITS[0] / 0.7).softmax(0)
    for cut in (False, True):
        assert torch.allclose(_frequencies(cut, temperature=0.7), expected, atol=0.01)


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p() -> None:
    kept = LOGITS[0].softmax(0) * torch.tensor([0, 1, 1, 0])  # of 0.09, 0.64, 0.24, 0.03
    assert torch.allclose(_frequencies(True, top_p=0.8), kept / kept.sum(), atol=0.01)


def test_the_kernel_draws_what_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(300, 103, generator=generator)
    uniform = torch.rand(300, generator=generator, dtype=torch.float64)
    temperature = torch.tensor([0.0, 0.6, 1.0], dtype=torch.float64).repeat(100)
    options = replace(_options(300), temperature=temperature)
    tokens, log_probabilities = sample(logits, uniform, options, torch.zeros(len(logits), dtype=torch.bool))
    monkeypatch.setattr(native, "library", lambda: None)
    expected, theirs = sample(logits, uniform, options, torch.zeros(len(logits), dtype=torch.bool))
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(log_probabilities, theirs, atol=2e-6, rtol=1e-5)


def test_a_tiny_nucleus_is_the_likeliest_token() -> None:
    assert _frequencies(True, top_p=1e-6)[1] == 1


def test_temperature_zero_is_greedy() -> None:
    assert _drawn(LOGITS, [0.99], _options(temperature=0.0), False) == [1]


def test_extreme_logits_give_a_token_that_has_mass() -> None:
    logits = torch.tensor([[float("-inf"), 1e4, -1e4]])
    for uniform in (0.0, 0.5, 1 - 2**-53):
        for cut in (False, True):
            assert _drawn(logits, [uniform], _options(), cut) == [1]


def test_log_probabilities_are_of_the_whole_distribution_at_the_temperature() -> None:
    options = Options.of(torch.tensor([[0.5, 0.0], [0.1, 1.0], [1.0, math.inf], [0.9, 0.0]], dtype=torch.float64))
    uniform = torch.tensor([0.3, 0.3], dtype=torch.float64)
    tokens, found = sample(LOGITS.expand(2, -1), uniform, options, torch.ones(2, dtype=torch.bool))
    assert tokens.tolist() == [1, 1]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack([(LOGITS[0] / t).log_softmax(0)[1] for t in (0.5, 1.0)]))


def _plain(
    logits: list[float], uniform: float, temperature: float, top_p: float, top_k: int | None, min_p: float
) -> tuple[int, float]:
    """The token by the definitions, and how near to a boundary the number fell."""
    largest = max(logits)
    weights = [math.exp((value - largest) / temperature) for value in logits]
    total = sum(weights)
    ranked = sorted(((-weight / total, index) for index, weight in enumerate(weights)))
    kept, mass = [], 0.0
    nearness = 1.0
    for rank, (negative, index) in enumerate(ranked):
        nearness = min(nearness, abs(mass - top_p), abs(-negative + min_p * ranked[0][0]) if rank else 1.0)
        if mass < top_p and (top_k is None or rank < top_k) and -negative >= min_p * -ranked[0][0]:
            kept.append((index, -negative))
        mass -= negative
    target = uniform * sum(weight for _, weight in kept)
    reached = 0.0
    for index, weight in kept:
        reached += weight
        nearness = min(nearness, abs(reached - target))
        if reached > target:
            return index, nearness
    return kept[-1][0], nearness


@settings(max_examples=300)
@given(
    st.lists(numbers, min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.1, 4),
    st.floats(0.01, 1),
    st.none() | st.integers(1, 12),
    st.floats(0, 1),
)
def test_every_cut_is_as_defined(
    logits: list[float], uniform: float, temperature: float, top_p: float, top_k: int | None, min_p: float
) -> None:
    expected, nearness = _plain(logits, uniform, temperature, top_p, top_k, min_p)
    rows = torch.tensor([logits[::-1], logits, [0.0] * len(logits)])  # other rows and options must not matter
    columns = [[1.0, 1.0, math.inf, 0.0], [temperature, top_p, top_k or math.inf, min_p], [0.0, 1.0, math.inf, 0.0]]
    around = Options.of(torch.tensor(columns, dtype=torch.float64).T)
    found = _drawn(rows, [0.5, uniform, 0.5], around, True)[1]
    if nearness > 1e-5:  # float32 logits cannot tell nearer ones apart
        assert found == expected
