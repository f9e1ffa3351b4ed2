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


def test_autocast_computes_in_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(random(300, 8), random(4, 8)).dtype == torch.bfloat16


def test_without_kernels_torch_computes_the_same(monkeypatch: pytest.MonkeyPatch):
    x, weight = random(100, 24), random(40, 24)
    ours = linear(x, weight)
    monkeypatch.setattr(native, "library", lambda: None)
    torch.testing.assert_close(linear(x, weight), ours, atol=1e-5, rtol=1e-5)
