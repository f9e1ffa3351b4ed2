import pytest
import torch
import torch.nn.functional as F

from pipeline.model.linear import linear, product


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 63, 64, 257])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (16, 80), (128, 33)])
def test_value_and_gradients_are_those_of_torch(rows: int, inputs: int, outputs: int, bias: bool):
    generator = torch.Generator().manual_seed(0)
    arguments = [torch.randn(shape, generator=generator) for shape in ((rows, inputs), (outputs, inputs), (outputs,))]
    arguments = [argument.requires_grad_() for argument in arguments[: 2 + bias]]
    ours, theirs = linear(*arguments), F.linear(*arguments)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn(ours.shape, generator=generator)
    for mine, reference in zip(
        torch.autograd.grad(ours, arguments, gradient), torch.autograd.grad(theirs, arguments, gradient), strict=True
    ):
        torch.testing.assert_close(mine, reference, atol=1e-4, rtol=1e-4)


def test_product_reads_transposed_views():
    a, b = torch.randn(100, 70).T, torch.randn(100, 90).T
    torch.testing.assert_close(product(a, b), a @ b.T)


def test_products_keep_float32_precision():
    a, b = torch.randn(256, 512), torch.randn(64, 512)
    error = (product(a, b) - (a.double() @ b.double().T)).abs().max()
    assert error < 2e-4  # bfloat16 inside would be off by 0.1


def test_autocast_computes_in_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(64, 8), torch.randn(4, 8)).dtype == torch.bfloat16
