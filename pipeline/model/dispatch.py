"""The products of all experts with the tokens that chose them, forward and backward.

Shapes: T tokens, D hidden, E experts, k experts per token, I expert width, P rows with padding.
Different from the textbook, which loops over the experts: a few hundred small products would cost more in starting than
in computing. Three ways, equal but for rounding:
`_NativeExperts`, in float32 on a CPU, is one call of cpp/experts.h for all of a layer's experts; under autocast to
bfloat16 its products round what they multiply, and nothing else.
`padded_experts` gives each expert's tokens a block of one of few heights (`ragged.layout`) and multiplies all blocks of
a height in one batched product; its backward is written out, because each pass over the rows that autograd would add
costs as much as a product. It copies the expert matrices, which is little where they are small.
`grouped_experts` is torch's grouped matrix product, one kernel on a GPU and no copies; on a CPU it is the slower one.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model import native
from pipeline.model.kernels import plain_swiglu, swiglu_backward
from pipeline.model.ragged import Layout, layout


def run_experts(x: Tensor, gate_up: Tensor, down: Tensor, experts: Tensor, weights: Tensor, base: Tensor) -> Tensor:
    """base + the sum over a token's k experts of weight · down(silu(gate(x)) · up(x)).

    x and base (T, D), gate_up (E, 2I, D), down (E, D, I), experts and weights (T, k) -> (T, D).
    """
    if native.usable(x, gate_up, down, weights, base):
        return _NativeExperts.apply(x, gate_up, down, weights, experts, base)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    compute = grouped_experts if x.is_cuda else padded_experts
    return base + compute(x, gate_up.to(x.dtype), down.to(x.dtype), experts, weights.to(x.dtype))


class Matrices(ctypes.Structure):
    """One matrix of every expert of a layer, as cpp/experts.h declares it."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("fused", "places", "scales", "pairs"))


def fused(matrices: Tensor) -> Matrices:
    """Of (E, rows, columns), one behind the other."""
    assert matrices.is_contiguous()
    return Matrices(matrices.data_ptr(), None, None, None)


class _NativeExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor, base: Tensor
    ) -> Tensor:
        x, weights, experts, base = (part.contiguous() for part in (x, weights, experts, base))
        count, hidden, size = down.shape
        order, slots, starts = torch.empty_like(experts), torch.empty_like(experts), experts.new_empty(count + 2)
        native.call("experts_plan", experts.numel(), count, experts, order, slots, starts)
        learning = any(ctx.needs_input_grad)
        saved = x.new_empty(2 * size * int(starts[-1])) if learning else None
        rows, out = x.new_empty(experts.numel(), hidden), torch.empty_like(x)
        ctx.shape = (native.in_bfloat16(), *experts.shape, hidden, size, count)
        given = (x, gate_up, down, weights, order, slots, starts)
        matrices = ctypes.byref(fused(gate_up)), ctypes.byref(fused(down))
        native.call("experts", *ctx.shape, x, *matrices, *given[3:], base, saved, rows, out)
        if learning:
            ctx.save_for_backward(*given, saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        learning = ctx.needs_input_grad[1:3]
        of_x, of_weights = torch.empty_like(given[0]), torch.empty_like(given[3])
        of_gate_up, of_down = (
            torch.empty_like(matrices) if wanted else None
            for matrices, wanted in zip(given[1:3], learning, strict=True)
        )
        gradients = (of_x, of_gate_up, of_down, of_weights)
        rows = grad.new_empty(given[4].numel(), grad.shape[1])
        native.call("experts_backward", *ctx.shape, *given, rows, grad.contiguous(), *gradients)
        return (*gradients, None, grad if ctx.needs_input_grad[5] else None)


def grouped_experts(x: Tensor, gate_up: Tensor, down: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """`run_experts` by torch's grouped matrix product over tokens sorted by expert; D and I multiples of 16 bytes.

    Nothing is read back to the host (`bincount` would), so that it can be part of a CUDA graph.
    """
    chosen, order = experts.flatten().sort(stable=True)
    ends = torch.searchsorted(chosen, torch.arange(len(down), device=x.device), right=True, out_int32=True)
    rows = x[order // experts.shape[1]]
    hidden = plain_swiglu(F.grouped_mm(rows, gate_up.transpose(1, 2), offs=ends)) * weights.flatten()[order, None]
    out = F.grouped_mm(hidden, down.transpose(1, 2), offs=ends)
    return torch.empty_like(out).index_copy(0, order, out).unflatten(0, experts.shape).sum(1)


def padded_experts(x: Tensor, gate_up: Tensor, down: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """`run_experts` by batched products over padded blocks of tokens."""
    chosen = experts.flatten()
    order = chosen.argsort(stable=True)
    blocks = layout(torch.bincount(chosen, minlength=len(down)))
    assignment = order[blocks.source]  # (P,) which of the T · k choices a padded row serves
    slots = torch.empty_like(order).index_copy_(0, order, blocks.slots)  # (T · k,) and back
    return _PaddedExperts.apply(x, gate_up, down, weights, assignment, slots.view(experts.shape), blocks)


class _PaddedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate_up: Tensor,
        down: Tensor,
        weights: Tensor,
        assignment: Tensor,
        slots: Tensor,
        blocks: Layout,
    ) -> Tensor:
        tokens = assignment // slots.shape[1]
        # The weight enters before the last product, where rows are I wide, and is 0 in padding, so that no gradient
        # counts a padded row.
        row_weights = x.new_zeros(len(tokens), 1)
        row_weights[slots.flatten(), 0] = weights.flatten()
        rows = x.index_select(0, tokens)
        gate_up, down = (matrices.index_select(0, blocks.order) for matrices in (gate_up, down))
        gate_up_rows = _products(blocks, rows, gate_up.transpose(1, 2))
        weighted = plain_swiglu(gate_up_rows).mul_(row_weights)
        out = _products(blocks, weighted, down.transpose(1, 2))
        ctx.blocks = blocks
        ctx.save_for_backward(gate_up, down, tokens, slots, row_weights, rows, gate_up_rows, weighted)
        return _sum_over_choices(out, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, down, tokens, slots, row_weights, rows, gate_up_rows, weighted = ctx.saved_tensors
        blocks = ctx.blocks
        grad_rows = grad.index_select(0, tokens)
        unweighted_grad = _products(blocks, grad_rows, down)  # of silu(gate) · up · weight by its weight's share
        down_grad = _outer_products(blocks, grad_rows, weighted) if ctx.needs_input_grad[2] else None
        activation_grad = unweighted_grad * row_weights
        gate_up_rows_grad = swiglu_backward(activation_grad, gate_up_rows)
        gate_up_grad = _outer_products(blocks, gate_up_rows_grad, rows) if ctx.needs_input_grad[1] else None
        x_grad = _sum_over_choices(_products(blocks, gate_up_rows_grad, gate_up), slots)
        weights_grad = torch.linalg.vecdot(unweighted_grad, plain_swiglu(gate_up_rows))[slots]
        return x_grad, gate_up_grad, down_grad, weights_grad, None, None, None


def _sum_over_choices(rows: Tensor, slots: Tensor) -> Tensor:
    """rows (P, D) and slots (T, k) -> (T, D), the sum of each token's k rows in one pass."""
    return F.embedding_bag(slots, rows, mode="sum")


def _products(blocks: Layout, rows: Tensor, matrices: Tensor) -> Tensor:
    """Each block of rows (P, A) times its matrix of (E', A, B), those of the experts in `blocks.order` -> (P, B)."""
    out = rows.new_empty(len(rows), matrices.shape[2])
    matrices_of = matrices.split([count for count, _ in blocks.classes])
    for block, matrix, product in zip(_by_height(blocks, rows), matrices_of, _by_height(blocks, out), strict=True):
        torch.bmm(block, matrix, out=product)
    return out


def _outer_products(blocks: Layout, left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ · right of each block, left (P, A) and right (P, B) -> (E, A, B), 0 for an expert without tokens."""
    experts = len(blocks.order) + len(blocks.empty)
    products = left.new_empty(len(blocks.order), left.shape[1], right.shape[1])
    products_of = products.split([count for count, _ in blocks.classes])
    for a, b, product in zip(_by_height(blocks, left), _by_height(blocks, right), products_of, strict=True):
        torch.bmm(a.transpose(1, 2), b, out=product)
    out = left.new_empty(experts, *products.shape[1:])
    return out.index_copy_(0, blocks.order, products).index_fill_(0, blocks.empty, 0.0)


def _by_height(blocks: Layout, rows: Tensor) -> list[Tensor]:
    """Views of rows (P, A), one for each height: (blocks, height, A)."""
    parts = rows.split([count * height for count, height in blocks.classes])
    return [part.view(*shape, -1) for part, shape in zip(parts, blocks.classes, strict=True)]
