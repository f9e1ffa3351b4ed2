"""Causal attention of many short sequences on a CPU, by kernels.cpp.

Different from the textbook: the scores L × L of a sequence are formed, where flash attention takes care not to. For
sequences up to `LONGEST` tokens they stay in the processor's cache, and flash attention's blocks are larger than the
sequences. The backward pass forms them again from the softmax's denominators.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model import native

LONGEST = 256


def short_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, begins: Tensor) -> Tensor:
    """query (T, H, d), key (T, G, d), value (T, G, e) -> (T, H, e); sequences begin at `begins` (S + 1,) int64."""
    return _ShortAttention.apply(query, key, value, scale, begins)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, begins: Tensor) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        tokens, heads, width = query.shape
        out = query.new_empty(tokens, heads, value.shape[2])
        log_sums = query.new_empty(heads, tokens)
        ctx.shape = (len(begins) - 1, heads, key.shape[1], width, value.shape[2], scale)
        ctx.save_for_backward(begins, query, key, value, log_sums)
        native.call("attention", *ctx.shape, begins, query, key, value, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _, query, key, value, _ = ctx.saved_tensors
        gradients = [torch.empty_like(part) for part in (query, key, value)]
        native.call("attention_backward", *ctx.shape, *ctx.saved_tensors, gradient.contiguous(), *gradients)
        return (*gradients, None, None)
