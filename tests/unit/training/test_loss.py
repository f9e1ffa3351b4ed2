import pytest
import torch
import torch.nn.functional as F

from pipeline.training import loss
from pipeline.training.loss import cross_entropy, token_log_probabilities


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states of 41 tokens, 11 words, and 37 predictors out of order with their targets."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(41, 8, generator=generator, requires_grad=True)
    weight = torch.randn(11, 8, generator=generator, requires_grad=True)
    predictors = torch.randperm(41, generator=generator)[:37]
    return hidden, weight, predictors, torch.randint(11, (37,), generator=generator)


def reference(hidden: torch.Tensor, weight: torch.Tensor, predictors: torch.Tensor, targets: torch.Tensor):
    return F.cross_entropy(hidden[predictors] @ weight.T, targets, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 110, 2**25])
def test_value_and_gradients_are_those_of_all_logits_at_once(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss, "CHUNK", chunk)
    hidden, weight, predictors, targets = inputs()
    ours = cross_entropy(hidden, weight, predictors, targets)
    theirs = reference(hidden, weight, predictors, targets)
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(3 * nats, (hidden, weight)) for nats in (ours, theirs))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_value_is_the_written_out_formula():
    hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0], [2.0, 5.0]])  # logits 0 and 2
    nats = cross_entropy(hidden, weight, torch.tensor([0]), torch.tensor([1]))
    assert nats.item() == pytest.approx(-2 + torch.log(1 + torch.tensor(2.0).exp()).item())


def test_logits_of_thousands_do_not_overflow():
    hidden, weight, predictors, targets = inputs()
    nats = cross_entropy(hidden * 1e4, weight, predictors, targets)
    assert torch.autograd.grad(nats, hidden)[0].isfinite().all()


def test_bfloat16_states_give_a_float32_loss_and_weight_gradient():
    hidden, weight, predictors, targets = inputs()
    nats = cross_entropy(hidden.bfloat16(), weight, predictors, targets)
    (gradient,) = torch.autograd.grad(nats, weight)
    assert nats.dtype == gradient.dtype == torch.float32
    assert nats.item() == pytest.approx(reference(hidden, weight, predictors, targets).item(), rel=0.01)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 110, 2**25])
def test_token_log_probabilities_and_their_gradients_are_those_of_all_logits_at_once(
    chunk: int, temperature: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loss, "CHUNK", chunk)
    hidden, weight, predictors, targets = (part.double() if part.is_floating_point() else part for part in inputs())
    distribution = torch.log_softmax(hidden[predictors] @ weight.T / temperature, dim=1)
    theirs = distribution.gather(1, targets[:, None]).squeeze(1)
    ours, entropy = token_log_probabilities(hidden, weight, predictors, targets, temperature)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, -(distribution.exp() * distribution).sum(1), rtol=1e-12, atol=1e-12)
    assert not entropy.requires_grad
    scale = torch.linspace(-1, 1, len(targets), dtype=torch.float64)
    gradients = (torch.autograd.grad((scale * part.exp()).sum(), (hidden, weight)) for part in (ours, theirs))
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


def test_token_log_probabilities_add_up_to_the_cross_entropy():
    hidden, weight, predictors, targets = inputs()
    ours, _ = token_log_probabilities(hidden, weight, predictors, targets, temperature=1.0)
    torch.testing.assert_close(-ours.sum(), cross_entropy(hidden, weight, predictors, targets))


def test_token_log_probabilities_of_bfloat16_states_are_float32():
    hidden, weight, predictors, targets = inputs()
    ours, entropy = token_log_probabilities(hidden.bfloat16(), weight, predictors, targets, temperature=1.0)
    (gradient,) = torch.autograd.grad(ours.sum(), weight)
    assert ours.dtype == entropy.dtype == gradient.dtype == torch.float32
