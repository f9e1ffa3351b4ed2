"""The sampler against counting and against the definition of a nucleus."""

import torch

from pipeline.generation.sampler import choose, randomness
from pipeline.params import Sampling

LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0]])


def _frequencies(options: Sampling, draws: int = 40_000) -> torch.Tensor:
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return choose(LOGITS.expand(draws, -1), uniform, options).bincount(minlength=4) / draws


def test_frequencies_are_the_softmax() -> None:
    expected = (LOGITS[0] / 0.7).softmax(0)
    assert torch.allclose(_frequencies(Sampling(temperature=0.7, top_p=1.0)), expected, atol=0.01)


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p() -> None:
    probabilities = LOGITS[0].softmax(0)  # 0.09, 0.64, 0.24, 0.03
    frequencies = _frequencies(Sampling(temperature=1.0, top_p=0.8))
    kept = probabilities * torch.tensor([0, 1, 1, 0])
    assert torch.allclose(frequencies, kept / kept.sum(), atol=0.01)


def test_a_tiny_nucleus_is_the_likeliest_token() -> None:
    assert _frequencies(Sampling(temperature=1.0, top_p=1e-6))[1] == 1


def test_temperature_zero_is_greedy() -> None:
    assert choose(LOGITS, torch.tensor([0.99]), Sampling(temperature=0.0)).tolist() == [1]


def test_extreme_logits_give_a_token() -> None:
    logits = torch.tensor([[float("-inf"), 1e4, -1e4]])
    for u in (0.0, 0.5, 1.0):
        assert choose(logits, torch.tensor([u], dtype=torch.float64), Sampling(temperature=1.0)).tolist() == [1]


def test_numbers_belong_to_seed_prompt_and_sample() -> None:
    draws = {tuple(randomness(s, p, n, 4).tolist()) for s, p, n in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]}
    assert len(draws) == 4
    assert torch.equal(randomness(0, "a", 0, 4), randomness(0, "a", 0, 8)[:4])
