import math

import pytest
import torch
from torch import nn

from pipeline.params import Training
from pipeline.training.engine import TorchEngine


def options(**changes: object) -> Training:
    return Training.model_validate({"steps": 10, "tokens_per_step": 64, "learning_rate": 0.1, **changes})


class Toy(nn.Module):
    """Random by dropout, with tied weights and a buffer that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.second(self.dropout(self.first(x).tanh())).square().sum()


def steps(engine: TorchEngine, count: int) -> list[float]:
    norms = []
    for _ in range(count):
        engine.backward(engine(torch.ones(3, 4)))
        norms.append(engine.step(0.1))
    return norms


def test_state_carries_a_run_on_to_the_bit():
    torch.manual_seed(0)
    engine = TorchEngine(Toy(), options())
    steps(engine, 3)
    kept = {part: {name: value.clone() for name, value in values.items()} for part, values in engine.state().items()}
    expected = steps(engine, 4)
    torch.manual_seed(1)
    resumed = TorchEngine(Toy(), options())
    resumed.load_state(kept)
    assert steps(resumed, 4) == expected
    for name, value in engine.state()["weights"].items():
        assert torch.equal(resumed.state()["weights"][name], value), name


def test_state_names_tied_weights_once():
    assert sorted(TorchEngine(Toy(), options()).state()["weights"]) == ["calls", "first.bias", "first.weight"]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_updates_nothing(poison: float):
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    engine = TorchEngine(model, options())
    engine.backward(engine(torch.tensor([[poison, 1.0]])).sum())
    assert not math.isfinite(engine.step(0.1))
    assert torch.equal(model.weight, before)


def test_a_step_that_is_not_permitted_reports_its_norm_and_leaves_weights_and_moments():
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.clone()
    engine = TorchEngine(model, options())
    seen = []

    def refuse(norm: float) -> bool:
        seen.append(norm)
        return False

    engine.backward(engine(torch.tensor([[3.0, 4.0]])).sum())
    assert engine.step(0.1, refuse) == pytest.approx(5.0)
    assert seen == [pytest.approx(5.0)]
    assert torch.equal(model.weight, before)
    assert engine.state()["optimiser"] == {}
    engine.backward(engine(torch.tensor([[3.0, 0.0]])).sum())
    assert engine.step(0.0) == pytest.approx(3.0)  # the refused gradient is forgotten


def test_step_clips_by_the_global_norm_and_returns_it_unclipped():
    model = nn.Linear(2, 1, bias=False)
    engine = TorchEngine(model, options(gradient_clip=1.0))
    engine.backward(engine(torch.tensor([[3.0, 4.0]])).sum())
    assert engine.step(0.1) == pytest.approx(5.0)
    first_moment = engine.state()["optimiser"]["weight:exp_avg"]
    torch.testing.assert_close(first_moment, 0.1 * torch.tensor([[0.6, 0.8]]))


def test_gradients_add_up_until_the_step_and_are_forgotten_after_it():
    model = nn.Linear(1, 1, bias=False)
    engine = TorchEngine(model, options())
    for value in (1.0, 2.0):
        engine.backward(engine(torch.tensor([[value]])).sum())
    assert engine.step(0.0) == pytest.approx(3.0)
    engine.backward(engine(torch.tensor([[5.0]])).sum())
    assert engine.step(0.0) == pytest.approx(5.0)


def test_bfloat16_computes_in_it_and_keeps_float32_weights():
    model = nn.Linear(2, 1)
    engine = TorchEngine(model, options(dtype="bfloat16"))
    out = engine(torch.ones(1, 2))
    engine.backward(out.float().sum())
    engine.step(0.1)
    assert out.dtype == torch.bfloat16
    assert model.weight.dtype == engine.state()["optimiser"]["weight:exp_avg"].dtype == torch.float32
