"""Causal attention of many short sequences on a CPU, by cpp/attention.h.

Different from the textbook: the scores L × L of a sequence are formed, where flash attention takes care not to. For
sequences up to `LONGEST` tokens they stay in the processor's cache, and flash attention's blocks are larger than the
sequences. The backward pass forms them again from the softmax's denominators. Keys and values of latent attention are
read where the up-projection left them, and the rotary key that all heads share is not copied for each.
Shapes: T tokens, S sequences, H query heads, G key and value heads, d, e and R widths.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model import native

LONGEST = 256


def short_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, begins: Tensor) -> Tensor:
    """query (T, H, d), key (T, G, d), value (T, G, e) -> (T, H, e); sequences begin at `begins` (S + 1,) int64."""
    return _Attention.apply(query.contiguous(), key.contiguous(), value.contiguous(), scale, begins)


def short_latent_attention(query: Tensor, expanded: Tensor, rotary: Tensor, scale: float, begins: Tensor) -> Tensor:
    """query (T, H, n + R), expanded (T, H, n + e) = [key | value], rotary (T, 1, R) of all heads -> (T, H, e)."""
    return _LatentAttention.apply(query.contiguous(), expanded.contiguous(), rotary.contiguous(), scale, begins)


class _Sequences(ctypes.Structure):
    """As cpp/attention.h declares it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("S", "H", "G", "d", "R", "e")),
        *((name, ctypes.c_int64) for name in ("key_token", "key_head", "value_token", "value_head")),
        ("scale", ctypes.c_float),
        ("begins", ctypes.c_void_p),
    )


def _sequences(query: Tensor, key: Tensor, shared: int, value: Tensor, scale: float, begins: Tensor) -> _Sequences:
    """Of keys (T, G, d) and values (T, G, e) of any strides; a query's last `shared` numbers are the shared key's."""
    heads, groups, widths = query.shape[1], key.shape[1], (key.shape[2], shared, value.shape[2])
    strides = (*key.stride()[:2], *value.stride()[:2])
    return _Sequences(len(begins) - 1, heads, groups, *widths, *strides, scale, begins.data_ptr())


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, begins: Tensor) -> Tensor:
        tokens, heads, _ = query.shape
        out, log_sums = query.new_empty(tokens, heads, value.shape[2]), query.new_empty(heads, tokens)
        ctx.scale = scale
        ctx.save_for_backward(query, key, value, log_sums, begins)
        sequences = _sequences(query, key, 0, value, scale, begins)
        native.call("attention", ctypes.byref(sequences), query, key, None, value, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, log_sums, begins = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(part) for part in (query, key, value))
        sequences = _sequences(query, key, 0, value, ctx.scale, begins)
        given = (query, key, None, value, log_sums, gradient.contiguous())
        native.call("attention_backward", ctypes.byref(sequences), *given, of_query, of_key, None, of_value)
        return of_query, of_key, of_value, None, None


class _LatentAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, expanded: Tensor, rotary: Tensor, scale: float, begins: Tensor) -> Tensor:
        tokens, heads, width = query.shape
        key, value = expanded.tensor_split([width - rotary.shape[2]], dim=2)
        out, log_sums = query.new_empty(tokens, heads, value.shape[2]), query.new_empty(heads, tokens)
        ctx.scale = scale
        ctx.save_for_backward(query, expanded, rotary, log_sums, begins)
        sequences = _sequences(query, key, rotary.shape[2], value, scale, begins)
        parts = (query, native.strided(key), rotary, native.strided(value))
        native.call("attention", ctypes.byref(sequences), *parts, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, expanded, rotary, log_sums, begins = ctx.saved_tensors
        split = query.shape[2] - rotary.shape[2]
        key, value = expanded.tensor_split([split], dim=2)
        of_query, of_expanded = torch.empty_like(query), torch.empty_like(expanded)
        of_key, of_value = of_expanded.tensor_split([split], dim=2)
        of_rotary = rotary.new_empty(len(rotary), query.shape[1], rotary.shape[2])  # each head's part
        sequences = _sequences(query, key, rotary.shape[2], value, ctx.scale, begins)
        given = (query, native.strided(key), rotary, native.strided(value), log_sums, gradient.contiguous())
        gradients = (of_query, native.strided(of_key), of_rotary, native.strided(of_value))
        native.call("attention_backward", ctypes.byref(sequences), *given, *gradients)
        return of_query, of_expanded, of_rotary.sum(1, keepdim=True), None, None
