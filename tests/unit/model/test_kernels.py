import pytest
import torch
import torch.nn.functional as F

from pipeline.model.kernels import plain_swiglu, rms_norm, sigmoid, swiglu, swiglu_backward


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


def test_sigmoid_is_torchs_and_passes_gradcheck() -> None:
    x = random(7, 9) * 30
    torch.testing.assert_close(sigmoid(x), x.sigmoid())
    torch.testing.assert_close(sigmoid(torch.tensor([-1e4, 0, 1e4])), torch.tensor([0, 0.5, 1]))
    assert torch.autograd.gradcheck(sigmoid, random(7, 9))


def test_the_bits_of_a_sigmoid_do_not_depend_on_where_a_cores_part_ends() -> None:
    """With torch's own this fails at about one number in 60,000."""
    before = torch.get_num_threads()
    for rows in range(1901, 1921):
        x, bits = random(rows, 144, seed=rows).detach().float() * 4, []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            bits.append(sigmoid(x))
        assert torch.equal(bits[0], bits[1])
        assert torch.equal(bits[0], bits[2])
    torch.set_num_threads(before)


def test_written_out_gradient_of_swiglu_is_autograds() -> None:
    gate_up = random(9, 14)
    gradient = random(9, 7, seed=2).detach()
    (expected,) = torch.autograd.grad(plain_swiglu(gate_up), gate_up, gradient)
    torch.testing.assert_close(swiglu_backward(gradient, gate_up.detach()), expected)


@pytest.mark.parametrize("width", [1, 8, 16, 50, 128])
@pytest.mark.parametrize("rows", [1, 7, 700])
def test_float32_kernels_are_torchs_operators(rows: int, width: int) -> None:
    x, weight, gradient = (random(*shape).detach() for shape in ((rows, 2 * width), (2 * width,), (rows, 2 * width)))
    for ours, theirs, inputs in (
        (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, (2 * width,), w, 1e-5), (x, weight)),
        (swiglu, plain_swiglu, (8 * x,)),
    ):
        narrow = [part.float().requires_grad_() for part in inputs]
        wide = [part.clone().requires_grad_() for part in inputs]
        mine, reference = ours(*narrow), theirs(*wide)
        torch.testing.assert_close(mine.double(), reference, atol=1e-5, rtol=1e-5)
        flow = gradient[..., : mine.shape[-1]]
        pairs = zip(
            torch.autograd.grad(mine, narrow, flow.float()), torch.autograd.grad(reference, wide, flow), strict=True
        )
        for a, b in pairs:
            torch.testing.assert_close(a.double(), b, atol=2e-4, rtol=1e-4)
