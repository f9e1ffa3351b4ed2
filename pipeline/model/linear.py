"""x · Wᵀ, the matrix product that dense layers and the loss are made of, and its backward.

Different from the textbook: on a CPU, float32 products go to oneDNN, which uses AVX-512 wherever the processor has it;
torch's default there, MKL, does so on Intel's processors alone (two cores of an AMD EPYC: 190 against 390 GFLOP/s).
torch gives convolutions to oneDNN, so the product is written as a convolution with kernels of one pixel over an image
of T × 1 pixels, which lies in memory as x does.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 256
"""Rows from which on oneDNN gains more than its call costs."""

ROWS = 128
"""oneDNN compiles a kernel for every shape it meets, in about 1 ms, so the number of rows must not take every value."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for x (T, D) and weight (O, D) -> (T, O)."""
    if onednn_gains(x) and not torch.is_autocast_enabled("cpu"):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def onednn_gains(x: Tensor) -> bool:
    """Whether `products` and `product_gradients` are the faster way for x (T, D)."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and len(x) >= SMALLEST
        and torch.backends.mkldnn.is_available()
        and torch.get_num_threads() > 1  # with one thread torch does not hand convolutions to oneDNN
    )


def pad_rows(x: Tensor) -> Tensor:
    """x (T, D) with rows of zeros below it up to a multiple of ROWS."""
    return F.pad(x, (0, 0, 0, -len(x) % ROWS))


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (T, D) · weightᵀ for weight (O, D), plus bias (O,) -> (T, O). Not differentiable."""
    return F.conv2d(_image(x), weight[:, :, None, None], bias)[0, :, :, 0].T


def product_gradients(gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
    """From the gradient (T, O) of `product` to those of x (T, D) and weight (O, D); None for what is not wanted."""
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        _image(gradient),
        _image(x),
        weight[:, :, None, None],
        bias_sizes=None,
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        transposed=False,
        output_padding=(0, 0),
        groups=1,
        output_mask=(*wanted, False),
    )
    return of_x[0, :, :, 0].T if wanted[0] else None, of_weight[:, :, 0, 0] if wanted[1] else None


def _image(x: Tensor) -> Tensor:
    """x (T, D) as one image of T × 1 pixels with D channels, channels last: a view."""
    return x.contiguous()[None, :, None, :].permute(0, 3, 1, 2)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded = pad_rows(x)
        ctx.save_for_backward(padded, weight)
        return product(padded, weight, bias)[: len(x)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        padded, weight = ctx.saved_tensors
        of_x, of_weight = product_gradients(pad_rows(gradient), padded, weight, ctx.needs_input_grad[:2])
        of_bias = gradient.sum(0) if ctx.needs_input_grad[2] else None
        return None if of_x is None else of_x[: len(gradient)], of_weight, of_bias
