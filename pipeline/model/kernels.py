"""Elementwise parts of the decoder, with a backward of their own where autograd makes too many passes over memory.

At a few hundred hidden dimensions these passes, not the matrix products, are most of a step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension of x (..., D), computed in float32 or wider.

    Source: arXiv 1910.07467.
    """
    if not torch.is_grad_enabled():
        return _normed(x, weight, eps)[0]
    return _RMSNorm.apply(x, weight, eps)


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and the factor of each row."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    scale = mean_square.add_(eps).rsqrt_()
    return (wide * scale).mul_(weight).to(x.dtype), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        width = x.shape[-1]
        flat, weighted = x.to(scale.dtype).reshape(-1, width), weight.to(scale.dtype)
        flat_grad, flat_scale = grad.to(scale.dtype).reshape(-1, width), scale.reshape(-1, 1)
        product = flat * flat_grad
        weight_grad = product.t() @ flat_scale
        # d/dx of x·scale(x): the gradient less its part along x.
        along = (product @ weighted.unsqueeze(1)) * flat_scale.pow(3) / -width
        x_grad = (flat_grad * weighted).mul_(flat_scale).addcmul_(flat, along)
        return x_grad.view_as(x).to(x.dtype), weight_grad.squeeze(1).to(weight.dtype), None


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up for gate_up = [gate | up] (..., 2I) -> (..., I); arXiv 2002.05202."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """From the gradient (..., I) of `swiglu` to that of gate_up (..., 2I)."""
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.empty_like(gate_up)
    gate_grad, up_grad = out.chunk(2, dim=-1)
    sigmoid = gate.sigmoid()
    torch.mul(gate, sigmoid, out=up_grad)  # silu(gate), the derivative by up
    torch.addcmul(up_grad, sigmoid, 1 - up_grad, out=gate_grad)  # silu' = silu + sigmoid · (1 - silu)
    gate_grad.mul_(up).mul_(grad)
    up_grad.mul_(grad)
    return out
