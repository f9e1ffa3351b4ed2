import pytest
import torch
import torch.nn.functional as F

from pipeline.model.kernels import rms_norm, swiglu, swiglu_backward


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("shape", [(5, 8), (3, 2, 8)])
def test_rms_norm_is_torchs_and_passes_gradcheck(shape: tuple[int, ...]) -> None:
    x, weight = random(*shape), random(8, seed=1)
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), F.rms_norm(x, (8,), weight, 1e-3))
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))


def test_rms_norm_of_a_part_of_a_row_reads_that_part() -> None:
    row, weight = random(6, 12), random(5, seed=1)
    part = row[:, 4:9]
    torch.testing.assert_close(rms_norm(part, weight, 1e-6), rms_norm(part.contiguous(), weight, 1e-6))


def test_rms_norm_of_bfloat16_is_computed_in_float32() -> None:
    x, weight = random(64, 32).detach(), torch.ones(32)
    narrow = rms_norm(x.bfloat16(), weight.bfloat16(), 1e-6)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow, rms_norm(x.bfloat16().float(), weight, 1e-6).bfloat16())


def test_written_out_gradient_of_swiglu_is_autograds() -> None:
    gate_up = random(9, 14)
    gradient = random(9, 7, seed=2).detach()
    (expected,) = torch.autograd.grad(swiglu(gate_up), gate_up, gradient)
    torch.testing.assert_close(swiglu_backward(gradient, gate_up.detach()), expected)
