"""Elementwise parts of the decoder, with a backward of their own where autograd makes too many passes over memory.

At a few hundred hidden dimensions these passes, not the matrix products, are most of a step. In float32 on a CPU each
is one pass of cpp/dense.h; elsewhere the same by torch's operators.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model import native

PARTIAL_ROWS = 256
"""Rows that cpp/dense.h sums at a time into the gradient of a norm's weight."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension of x (..., D), computed in float32 or wider.

    Source: arXiv 1910.07467.
    """
    native_gains = native.usable(x, weight)
    if not torch.is_grad_enabled():  # nothing to record, and recording costs as much as the norm of a few rows
        return (_native_normed if native_gains else _normed)(x, weight, eps)[0]
    return (_NativeRMSNorm if native_gains else _RMSNorm).apply(x, weight, eps)


def _native_normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and the factor of each row."""
    x = x.contiguous()
    out, scale = torch.empty_like(x), x.new_empty(x.shape[:-1])
    native.call("rms_norm", scale.numel(), x.shape[-1], eps, x, weight, out, scale)
    return out, scale


class _NativeRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()  # as it is saved
        out, scale = _native_normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        x_grad = torch.empty_like(x)
        partial = x.new_empty(-(-scale.numel() // PARTIAL_ROWS), x.shape[-1])
        native.call(
            "rms_norm_backward", scale.numel(), x.shape[-1], x, weight, scale, grad.contiguous(), x_grad, partial
        )
        return x_grad, partial.sum(0), None


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


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^−x), on a CPU in steps that torch computes alike wherever a core's part of the numbers ends.

    torch's own sigmoid takes another routine for what is left at the end of each core's part, so bits of the routers'
    scores would depend on the number of cores.
    """
    return _Sigmoid.apply(x) if x.device.type == "cpu" else x.sigmoid()


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.neg().exp_().add_(1).reciprocal_()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.sigmoid_backward(grad, out)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up for gate_up = [gate | up] (..., 2I) -> (..., I); arXiv 2002.05202."""
    if not native.usable(gate_up):
        return plain_swiglu(gate_up)
    gate_up = gate_up.contiguous()
    return _SwiGLU.apply(gate_up) if torch.is_grad_enabled() else _native_swiglu(gate_up)


def _native_swiglu(gate_up: Tensor) -> Tensor:
    out = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
    native.call("swiglu", out.numel() // out.shape[-1], out.shape[-1], gate_up, out)
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _native_swiglu(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        out = torch.empty_like(gate_up)
        native.call("swiglu_backward", grad.numel() // grad.shape[-1], grad.shape[-1], gate_up, grad.contiguous(), out)
        return out


def plain_swiglu(gate_up: Tensor) -> Tensor:
    """`swiglu` by torch's operators."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """From the gradient (..., I) of `plain_swiglu` to that of gate_up (..., 2I)."""
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.empty_like(gate_up)
    gate_grad, up_grad = out.chunk(2, dim=-1)
    sigmoid = gate.sigmoid()
    torch.mul(gate, sigmoid, out=up_grad)  # silu(gate), the derivative by up
    torch.addcmul(up_grad, sigmoid, 1 - up_grad, out=gate_grad)  # silu' = silu + sigmoid · (1 - silu)
    gate_grad.mul_(up).mul_(grad)
    up_grad.mul_(grad)
    return out
