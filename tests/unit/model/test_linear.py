import pytest
import torch
import torch.nn.functional as F

from pipeline.model import native
from pipeline.model.linear import SMALLEST, linear


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, SMALLEST, 64, 300])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (16, 80), (128, 33), (700, 50)])
def test_value_and_gradients_are_those_of_torch(rows: int, inputs: int, outputs: int, bias: bool, residual: bool):
    given = {"x": random(rows, inputs), "weight": random(outputs, inputs)}
    given |= {"bias": random(outputs)} if bias else {}
    given |= {"residual": random(rows, outputs)} if residual else {}
    arguments = [argument.requires_grad_() for argument in given.values()]
    gradient = random(rows, outputs) + 1
    ours, theirs = linear(**given), F.linear(given["x"], given["weight"], given.get("bias"))
    theirs = theirs + given["residual"] if residual else theirs
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    pairs = zip(
        torch.autograd.grad(ours, arguments, gradient), torch.autograd.grad(theirs, arguments, gradient), strict=True
    )
    for mine, reference in pairs:
        torch.testing.assert_close(mine, reference, atol=2e-4, rtol=1e-4)


def test_only_the_gradients_that_are_asked_for_are_computed():
    x, weight = random(64, 8), random(4, 8).requires_grad_()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(4, 8))


def test_inputs_and_gradients_may_be_views_of_any_stride():
    x, weight = random(8, 300).T.requires_grad_(), random(8, 6).T
    linear(x, weight).sum().backward()  # the gradient is one number, expanded
    torch.testing.assert_close(x.grad, weight.sum(0).expand(300, 8))


def test_products_keep_float32_precision():
    x, weight = random(256, 512), random(64, 512)
    error = (linear(x, weight) - x.double() @ weight.double().T).abs().max()
    assert error < 2e-4  # bfloat16 inside would be off by 0.1


@pytest.mark.parametrize("rows", [1, 31, 300])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (16, 80), (129, 33), (700, 50)])
def test_autocast_rounds_what_is_multiplied_to_bfloat16_and_nothing_else(rows: int, inputs: int, outputs: int):
    x, weight = random(rows, inputs).requires_grad_(), random(outputs, inputs).requires_grad_()
    bias, residual, gradient = random(outputs), random(rows, outputs), random(rows, outputs) + 1
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x, weight, bias, residual)
    of_x, of_weight = torch.autograd.grad(out, (x, weight), gradient)
    rounded = [part.detach().bfloat16().double() for part in (x, weight, gradient)]
    exact = rounded[0] @ rounded[1].T + bias + residual, rounded[2] @ rounded[1], rounded[2].T @ rounded[0]
    for mine, reference in zip((out, of_x, of_weight), exact, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), reference, atol=2e-4, rtol=1e-5)


def test_products_in_bfloat16_are_near_to_those_of_torch():
    x, weight = random(300, 128), random(64, 128)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight).float(), atol=1e-2, rtol=1e-2)


def test_bfloat16_keeps_what_is_not_finite():
    x = random(4, 32)
    x[0, 0], x[1, 1], x[2, 2] = torch.nan, torch.inf, 3e38
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x, torch.eye(32))
    assert out[0].isnan().all()
    assert out[1, 1] == torch.inf
    assert out[2, 2] == pytest.approx(3e38, rel=0.01)
    assert out[3].isfinite().all()


def test_without_kernels_torch_computes_the_same(monkeypatch: pytest.MonkeyPatch):
    x, weight = random(100, 24), random(40, 24)
    ours = linear(x, weight)
    monkeypatch.setattr(native, "library", lambda: None)
    torch.testing.assert_close(linear(x, weight), ours, atol=1e-5, rtol=1e-5)
