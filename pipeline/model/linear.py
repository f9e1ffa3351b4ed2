"""x · Wᵀ, the matrix product that dense layers are made of, and its backward.

Different from the textbook: on a CPU, float32 products go to oneDNN, which uses AVX-512 wherever the processor has it;
torch's default there, MKL, does so on Intel's processors alone (two cores of an AMD EPYC: 190 against 400 GFLOP/s).
Forward and to the inputs by the operator that torch.compile puts in the place of linear layers; to the weights, where
that one is slow, by the gradient of a convolution with kernels of one pixel, the same sum.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 256
"""Rows from which on oneDNN gains more than its call costs."""

ROWS = 256
"""oneDNN compiles a kernel for every shape it meets, in about 1 ms, so the number of rows must not take every value."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for x (T, D) and weight (O, D) -> (T, O)."""
    if onednn_gains(x) and not torch.is_autocast_enabled("cpu"):
        if not torch.is_grad_enabled():  # nothing to record, and recording costs as much as a small product
            return product(_padded(x), weight, bias)[: len(x)]
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def onednn_gains(x: Tensor) -> bool:
    """Whether `product` and `weight_gradient` are the faster way for x (T, D)."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and len(x) >= SMALLEST
        and torch.backends.mkldnn.is_available()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (T, D) · weightᵀ for weight (O, D), plus bias (O,) -> (T, O), T a multiple of ROWS. Not differentiable."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """From the gradient (T, O) of `product` to that of weight (O, D), gradientᵀ · x, T a multiple of ROWS."""
    _, of_weight, _ = torch.ops.aten.convolution_backward(
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
        output_mask=(False, True, False),
    )
    return of_weight[:, :, 0, 0]


def _image(x: Tensor) -> Tensor:
    """x (T, D) as one image of T × 1 pixels with D channels, channels last: a view."""
    return x.contiguous()[None, :, None, :].permute(0, 3, 1, 2)


def _padded(x: Tensor) -> Tensor:
    """x (T, D) with rows of zeros below it up to a multiple of ROWS."""
    missing = -len(x) % ROWS
    return F.pad(x, (0, 0, 0, missing)) if missing else x


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded = _padded(x)
        ctx.save_for_backward(padded, weight)
        return product(padded, weight, bias)[: len(x)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        padded = _padded(gradient)
        return (
            product(padded, weight.T)[: len(gradient)] if of_x else None,
            weight_gradient(padded, x, weight) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )
