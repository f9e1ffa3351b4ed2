import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.model.dispatch import grouped_experts, padded_experts, run_experts


def looped(x: Tensor, gate_up: Tensor, down: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """The textbook: token by token, expert by expert."""
    rows = []
    for row, chosen, shares in zip(x, experts.tolist(), weights, strict=True):
        out = torch.zeros_like(row)
        for expert, share in zip(chosen, shares, strict=True):
            gate, up = (gate_up[expert] @ row).chunk(2)
            out = out + share * (down[expert] @ (F.silu(gate) * up))
        rows.append(out)
    return torch.stack(rows)


def arguments(tokens: int, experts: int, top_k: int, seed: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # Cubing crowds some experts and leaves others empty.
    scores = torch.randn(experts, generator=generator) ** 3 + torch.randn(tokens, experts, generator=generator)
    shapes = ((tokens, 8), (experts, 8, 8), (experts, 8, 4), (tokens, top_k))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    return made, scores.topk(top_k).indices


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(2, 9), st.integers(1, 2), st.integers(0, 2**16))
def test_padded_products_are_the_textbook_forward_and_backward(
    tokens: int, experts: int, top_k: int, seed: int
) -> None:
    (x, gate_up, down, weights), chosen = arguments(tokens, experts, top_k, seed)
    ours = padded_experts(x, gate_up, down, chosen, weights)
    theirs = looped(x, gate_up, down, chosen, weights)
    torch.testing.assert_close(ours, theirs)
    inputs = (x, gate_up, down, weights)
    for mine, expected in zip(
        torch.autograd.grad(ours.sin().sum(), inputs), torch.autograd.grad(theirs.sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, expected)


def test_padded_products_pass_gradcheck() -> None:
    (x, gate_up, down, weights), chosen = arguments(tokens=7, experts=4, top_k=2, seed=3)
    assert torch.autograd.gradcheck(
        lambda *given: padded_experts(*given[:3], chosen, given[3]), (x, gate_up, down, weights)
    )


@pytest.mark.parametrize("top_k", [1, 3])
def test_grouped_products_are_the_padded_ones(top_k: int) -> None:
    (x, gate_up, down, weights), chosen = arguments(tokens=50, experts=8, top_k=top_k, seed=5)
    inputs = [tensor.detach().float().requires_grad_() for tensor in (x, gate_up, down, weights)]
    outputs = [run(*inputs[:3], chosen, inputs[3]) for run in (padded_experts, grouped_experts)]
    torch.testing.assert_close(*outputs)
    for pair in zip(*(torch.autograd.grad(output.sin().sum(), inputs) for output in outputs), strict=True):
        torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)


@settings(max_examples=25)
@given(st.integers(1, 300), st.integers(2, 9), st.integers(1, 2), st.integers(0, 2**16))
def test_float32_kernels_are_the_padded_products(tokens: int, experts: int, top_k: int, seed: int) -> None:
    (x, gate_up, down, weights), chosen = arguments(tokens, experts, top_k, seed)
    inputs = (x, gate_up, down, weights)
    base = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x).requires_grad_()
    inputs = (*inputs, base)
    narrow = [tensor.detach().float().requires_grad_() for tensor in inputs]
    ours = run_experts(*narrow[:3], chosen, *narrow[3:])
    theirs = base + padded_experts(*inputs[:3], chosen, weights)
    with torch.no_grad():
        torch.testing.assert_close(run_experts(*narrow[:3], chosen, *narrow[3:]), ours)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-3, rtol=1e-4)
    gradient = torch.ones_like(theirs)
    for mine, expected in zip(
        torch.autograd.grad(ours, narrow, gradient.float()), torch.autograd.grad(theirs, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(mine.double(), expected, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(("tokens", "experts"), [(1, 3), (7, 9), (97, 2), (300, 2), (300, 9)])
def test_kernels_in_bfloat16_are_the_padded_products_within_its_rounding(tokens: int, experts: int) -> None:
    (x, gate_up, down, weights), chosen = arguments(tokens, experts, top_k=2, seed=tokens)
    inputs = (x, gate_up, down, weights)
    narrow = [tensor.detach().float().requires_grad_() for tensor in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        ours = run_experts(*narrow[:3], chosen, narrow[3], torch.zeros_like(narrow[0]))
    theirs = padded_experts(*inputs[:3], chosen, weights)
    gradient = torch.linspace(-1, 1, theirs.numel(), dtype=theirs.dtype).view_as(theirs)
    mine = [ours, *torch.autograd.grad(ours, narrow, gradient.float())]
    expected = [theirs, *torch.autograd.grad(theirs, inputs, gradient)]
    for one, other in zip(mine, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.02 * other.norm()  # one rounding is off by 0.004 at most


def test_a_token_does_not_depend_on_its_company() -> None:
    (x, gate_up, down, weights), chosen = arguments(tokens=30, experts=5, top_k=2, seed=7)
    shuffle = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    together = padded_experts(x, gate_up, down, chosen, weights)
    shuffled = padded_experts(x[shuffle], gate_up, down, chosen[shuffle], weights[shuffle])
    torch.testing.assert_close(shuffled, together[shuffle])


def test_a_token_that_is_not_finite_spoils_its_own_experts_only() -> None:
    (x, gate_up, down, weights), _ = arguments(tokens=4, experts=3, top_k=1, seed=1)
    chosen = torch.tensor([[0], [1], [1], [2]])
    with torch.no_grad():
        x[0] = torch.inf
    (gradient,) = torch.autograd.grad(padded_experts(x, gate_up, down, chosen, weights)[1:].sum(), gate_up)
    assert gradient[1:].isfinite().all()
