import math

import pytest
import torch
from torch import nn

from pipeline.params import Training
from pipeline.training.optimiser import adamw, gradient_norm, learning_rate


def options(**changes: object) -> Training:
    return Training.model_validate({"steps": 100, "tokens_per_step": 64, "learning_rate": 1.0, **changes})


def test_rate_rises_linearly_then_falls_by_a_cosine_to_its_final_share():
    rates = [learning_rate(options(warmup=0.1, final_learning_rate=0.2), step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] == pytest.approx(0.2)
    halfway = 10 + 89 / 2
    assert (rates[54] + rates[55]) / 2 == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (halfway - 10) / 89)))


@pytest.mark.parametrize("warmup", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_step_has_a_rate(steps: int, warmup: float):
    for step in range(steps):
        assert 0 < learning_rate(options(steps=steps, warmup=warmup), step) <= 1


def test_first_update_is_the_written_out_formula_and_decay_spares_vectors():
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(model.bias, 1.0)
    optimiser = adamw(model, options(weight_decay=0.5, learning_rate=0.1))
    model(torch.tensor([[2.0, -3.0]])).sum().backward()
    optimiser.step()
    # At the first step m̂ / √v̂ is the gradient's sign; decay takes lr · 0.5 of the weight.
    torch.testing.assert_close(model.weight.data, torch.tensor([[1 - 0.05 - 0.1, 1 - 0.05 + 0.1]]))
    torch.testing.assert_close(model.bias.data, torch.tensor([1 - 0.1]))


def test_gradient_norm_is_that_of_one_long_vector():
    assert gradient_norm([torch.tensor([[3.0], [0.0]]), torch.tensor([4.0, 12.0])]) == pytest.approx(13)
    long = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0))
    assert gradient_norm([long]) == pytest.approx(long.double().norm().item(), rel=1e-6)
    assert math.isnan(gradient_norm([torch.ones(2), torch.tensor([math.nan])]))
