import pytest
import torch
import torch.nn.functional as F

from pipeline.training import loss
from pipeline.training.loss import cross_entropy


def inputs(rows: int = 37, hidden: int = 8, vocabulary: int = 11) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, hidden, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, hidden, generator=generator, requires_grad=True)
    return states, weight, torch.randint(vocabulary, (rows,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 110, 2**25])
def test_value_and_gradients_are_those_of_all_logits_at_once(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss, "CHUNK", chunk)
    hidden, weight, targets = inputs()
    ours = cross_entropy(hidden, weight, targets)
    theirs = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    for mine, reference in zip(
        torch.autograd.grad(3 * ours, (hidden, weight)), torch.autograd.grad(3 * theirs, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(mine, reference)


def test_value_is_the_written_out_formula():
    hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0], [2.0, 5.0]])  # logits 0 and 2
    nats = cross_entropy(hidden, weight, torch.tensor([1]))
    assert nats.item() == pytest.approx(-2 + torch.log(1 + torch.tensor(2.0).exp()).item())


def test_logits_of_thousands_do_not_overflow():
    hidden, weight, targets = inputs()
    nats = cross_entropy(hidden * 1e4, weight, targets)
    assert torch.autograd.grad(nats, hidden)[0].isfinite().all()


def test_bfloat16_states_give_a_float32_loss_and_weight_gradient():
    hidden, weight, targets = inputs()
    nats = cross_entropy(hidden.bfloat16(), weight, targets)
    (gradient,) = torch.autograd.grad(nats, weight)
    assert nats.dtype == gradient.dtype == torch.float32
    assert nats.item() == pytest.approx(F.cross_entropy(hidden @ weight.T, targets, reduction="sum").item(), rel=0.01)
