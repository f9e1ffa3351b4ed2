"""x · Wᵀ, the matrix product that dense layers and the loss are made of.

Different from the textbook: on a CPU, float32 products go to oneDNN, which uses AVX-512 wherever the processor has it;
torch's default there, MKL, does so on Intel's processors alone (on an AMD EPYC of 2024: 97 against 216 GFLOP/s a core).
The operator is the one that torch.compile puts in the place of linear layers; it has no derivative of its own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 64
"""Rows from which on oneDNN gains more than its call costs (some 10 µs)."""


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (M, K) · bᵀ for b (N, K), plus bias (N,) -> (M, N). Not differentiable; both may be transposed views."""
    if _is_cpu_float32(a) and len(a) >= SMALLEST and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for x (T, D) and weight (O, D) -> (T, O)."""
    if _is_cpu_float32(x) and not torch.is_autocast_enabled("cpu"):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def _is_cpu_float32(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.T) if of_x else None,
            _weight_gradient(gradient, x) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """gradientᵀ (O, T) · x (T, D) -> (O, D). The operator copies a transposed first factor: let it be the narrower."""
    if gradient.shape[1] <= x.shape[1]:
        return product(gradient.T, x.T)
    return product(x.T, gradient.T).T.contiguous()
