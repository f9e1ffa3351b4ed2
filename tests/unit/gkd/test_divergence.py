"""Each formula against the written-out one, and what every divergence has in common."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.gkd import divergence as module
from pipeline.gkd.divergence import divergence, pointwise

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def written_out(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """The definitions (arXiv 2306.13649, section 2), p being the teacher's distribution."""
    if beta == 0:
        return kl(p, q)
    if beta == 1:
        return kl(q, p)
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Student of width 8, teacher of width 5, 11 words, 37 predictors among 41 tokens, out of order."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, theirs, their_weight = (
        torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for rows, width in ((41, 8), (11, 8), (41, 5), (11, 5))
    )
    return (hidden, weight), (theirs, their_weight), torch.randperm(41, generator=generator)[:37]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 110, 2**25])
def test_value_and_gradients_are_those_of_all_logits_at_once(
    beta: float, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    student, teacher, predictors = inputs()
    q, p = (torch.softmax(hidden[predictors] @ weight.T / temperature, 1) for hidden, weight in (student, teacher))
    expected = written_out(p.detach(), q, beta).sum()
    ours = divergence(student, teacher, predictors, beta=beta, temperature=temperature)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)  # ours is summed in float32
    gradients = (torch.autograd.grad(3 * value, student) for value in (ours, expected))
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher, predictors = inputs()
    divergence(student, teacher, predictors, beta=0.5, temperature=1.0).backward()
    assert all(part.grad is None for part in teacher)
    assert all(part.grad is not None for part in student)


def test_bfloat16_states_give_a_float32_value_and_weight_gradient() -> None:
    (hidden, weight), (theirs, their_weight), predictors = inputs(torch.float32)
    exact = divergence((hidden, weight), (theirs, their_weight), predictors, beta=0.5, temperature=1.0)
    value = divergence(
        (hidden.bfloat16(), weight), (theirs.bfloat16(), their_weight), predictors, beta=0.5, temperature=1.0
    )
    (gradient,) = torch.autograd.grad(value, weight)
    assert value.dtype == gradient.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=0.02)


def test_logits_of_thousands_do_not_overflow() -> None:
    (hidden, weight), teacher, predictors = inputs()
    for beta in BETAS:
        value = divergence((hidden * 1e4, weight), teacher, predictors, beta=beta, temperature=1.0)
        assert value.isfinite()
        assert torch.autograd.grad(value, hidden)[0].isfinite().all()


LOGITS = st.lists(st.floats(-30, 30), min_size=4, max_size=4)


def both(first: list[float], second: list[float]) -> tuple[Tensor, Tensor]:
    p, q = (torch.tensor([logits], dtype=torch.float64).log_softmax(1) for logits in (first, second))
    return p, q


@given(LOGITS, LOGITS, st.floats(0, 1))
def test_never_negative_and_zero_only_for_equals(first: list[float], second: list[float], beta: float) -> None:
    log_p, log_q = both(first, second)
    value, gradient = pointwise(log_p, log_q, beta)
    assert value.item() >= -1e-12
    assert gradient.sum().item() == pytest.approx(0, abs=1e-9)  # a constant added to all logits changes nothing
    same, none = pointwise(log_p, log_p, beta)
    assert same.item() == pytest.approx(0, abs=1e-12)
    assert none.abs().max().item() < 1e-12


@given(LOGITS, LOGITS, st.floats(0.01, 0.99))
def test_jensen_shannon_mirrors_itself_and_is_bounded(first: list[float], second: list[float], beta: float) -> None:
    log_p, log_q = both(first, second)
    value = pointwise(log_p, log_q, beta)[0].item()
    assert value == pytest.approx(pointwise(log_q, log_p, 1 - beta)[0].item(), abs=1e-9)
    assert value <= -(beta * torch.tensor(beta).log() + (1 - beta) * torch.tensor(1 - beta).log()).item() + 1e-6


@given(LOGITS, LOGITS)
def test_the_ends_are_what_the_middle_goes_to(first: list[float], second: list[float]) -> None:
    log_p, log_q = (part.clamp(min=-8) for part in both(first, second))
    log_p, log_q = log_p.log_softmax(1), log_q.log_softmax(1)
    small = 1e-6
    forward, reverse = pointwise(log_p, log_q, small)[0] / small, pointwise(log_p, log_q, 1 - small)[0] / small
    torch.testing.assert_close(forward, pointwise(log_p, log_q, 0.0)[0], rtol=0.02, atol=1e-6)
    torch.testing.assert_close(reverse, pointwise(log_p, log_q, 1.0)[0], rtol=0.02, atol=1e-6)
