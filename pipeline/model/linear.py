"""x · Wᵀ, the matrix product that dense layers are made of, and its backward.

Different from the textbook: on a CPU, float32 products of more than a few rows go to cpp/dense.h. torch hands them to a
library (MKL) that leaves half of what other makers' processors can do unused, and at a few hundred rows another half
goes into starting and copying. Under autocast to bfloat16 these products round what they multiply, and nothing else.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model import native

SMALLEST = 32
"""Rows from which on turning the weights around costs less than it gains."""

LARGEST = 2**22
"""Numbers in a matrix of weights up to which it is turned around: as large a copy is kept for the next product."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """residual + F.linear, which costs no pass of its own, for x (T, D), weight (O, D), residual (T, O) -> (T, O)."""
    more = [part for part in (bias, residual) if part is not None]
    if x.ndim == 2 and _gains(x, weight, *more):
        x, weight = x.contiguous(), weight.contiguous()
        bias, residual = (None if part is None else part.contiguous() for part in (bias, residual))
        # Without gradients there is nothing to record, and recording costs as much as a small product.
        return (_Linear.apply if torch.is_grad_enabled() else _product)(x, weight, bias, residual)
    out = F.linear(x, weight, bias)
    return out if residual is None else residual + out


def linear_gradient(x: Tensor, weight: Tensor, gradient: Tensor, weight_gradient: Tensor | None) -> Tensor:
    """From the gradient (T, O) of `linear` to that of x (T, D).

    That of weight (O, D) is added to `weight_gradient`, or not computed where that is None.
    """
    if not _gains(x, weight, gradient):
        if weight_gradient is not None:
            weight_gradient += gradient.T @ x
        return gradient @ weight
    of_x, of_weight = torch.empty_like(x), None if weight_gradient is None else torch.empty_like(weight)
    _gradients(native.in_bfloat16(), x, weight, gradient, of_x, of_weight)
    if weight_gradient is not None and of_weight is not None:
        weight_gradient += of_weight
    return of_x


def _gains(x: Tensor, weight: Tensor, *others: Tensor) -> bool:
    enough = len(x) >= SMALLEST or native.in_bfloat16()
    return enough and weight.numel() <= LARGEST and native.usable(x, weight, *others)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    out = x.new_empty(len(x), len(weight))
    native.call("linear", native.in_bfloat16(), *x.shape, len(weight), x, weight, bias, residual, out)
    return out


def _gradients(
    bfloat16: bool, x: Tensor, weight: Tensor, gradient: Tensor, x_grad: Tensor | None, weight_grad: Tensor | None
) -> None:
    """Fill in the gradients that are asked for."""
    given = (x, weight, gradient.contiguous())
    native.call("linear_backward", bfloat16, *x.shape, len(weight), *given, x_grad, weight_grad)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bfloat16 = native.in_bfloat16()
        return _product(x, weight, bias, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, of_residual = ctx.needs_input_grad
        x_grad = torch.empty_like(x) if of_x else None
        weight_grad = torch.empty_like(weight) if of_weight else None
        _gradients(ctx.bfloat16, x, weight, gradient, x_grad, weight_grad)
        return x_grad, weight_grad, gradient.sum(0) if of_bias else None, gradient if of_residual else None
