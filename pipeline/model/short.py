"""Causal attention of many short sequences on a CPU, by cpp/attention.h.

Different from the textbook: the scores L × L of a sequence are formed, where flash attention takes care not to. For
sequences up to `LONGEST` tokens they stay in the processor's cache, and flash attention's blocks are larger than the
sequences. The backward pass forms them again from the softmax's denominators. Keys and values of latent attention are
read where the up-projection left them, and the rotary key that all heads share is not copied for each. Sequences that
begin alike can share their beginning, the trunk of a family: its tokens stand there, and are computed, once.
Shapes: T tokens, S segments of F families, H query heads, G key and value heads, d, e and R widths.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model import native

LONGEST = 256


@dataclass(frozen=True, slots=True)
class Segments:
    """Where each of S segments begins, (S + 1,) int64, and with which segment each of F families does, (F + 1,) int64.

    Of a family of several segments the first is the trunk, and each of the others goes on from its end.
    """

    begins: Tensor
    families: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], families: Sequence[int]) -> Self:
        """Segments of these lengths end to end, so many of them to each family."""
        return cls(*(F.pad(torch.tensor(sizes).cumsum(0), (1, 0)) for sizes in (lengths, families)))


def short_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, segments: Segments) -> Tensor:
    """query (T, H, d), key (T, G, d), value (T, G, e) -> (T, H, e)."""
    return _Attention.apply(query.contiguous(), key.contiguous(), value.contiguous(), scale, segments)


def short_latent_attention(query: Tensor, expanded: Tensor, rotary: Tensor, scale: float, segments: Segments) -> Tensor:
    """query (T, H, n + R), expanded (T, H, n + e) = [key | value], rotary (T, 1, R) of all heads -> (T, H, e)."""
    return _LatentAttention.apply(query.contiguous(), expanded.contiguous(), rotary.contiguous(), scale, segments)


class _Sequences(ctypes.Structure):
    """As cpp/attention.h declares it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("F", "H", "G", "d", "R", "e")),
        *((name, ctypes.c_int64) for name in ("key_token", "key_head", "value_token", "value_head")),
        ("scale", ctypes.c_float),
        ("begins", ctypes.c_void_p),
        ("families", ctypes.c_void_p),
    )


def _sequences(query: Tensor, key: Tensor, shared: int, value: Tensor, scale: float, segments: Segments) -> _Sequences:
    """Of keys (T, G, d) and values (T, G, e) of any strides; a query's last `shared` numbers are the shared key's."""
    heads, groups, widths = query.shape[1], key.shape[1], (key.shape[2], shared, value.shape[2])
    strides = (*key.stride()[:2], *value.stride()[:2])
    places = (segments.begins.data_ptr(), segments.families.data_ptr())
    return _Sequences(len(segments.families) - 1, heads, groups, *widths, *strides, scale, *places)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, segments: Segments) -> Tensor:
        tokens, heads, _ = query.shape
        out, log_sums = query.new_empty(tokens, heads, value.shape[2]), query.new_empty(heads, tokens)
        ctx.scale, ctx.segments = scale, segments
        ctx.save_for_backward(query, key, value, log_sums)
        sequences = _sequences(query, key, 0, value, scale, segments)
        native.call("attention", ctypes.byref(sequences), query, key, None, value, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, log_sums = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(part) for part in (query, key, value))
        sequences = _sequences(query, key, 0, value, ctx.scale, ctx.segments)
        given = (query, key, None, value, log_sums, gradient.contiguous())
        native.call("attention_backward", ctypes.byref(sequences), *given, of_query, of_key, None, of_value)
        return of_query, of_key, of_value, None, None


class _LatentAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, expanded: Tensor, rotary: Tensor, scale: float, segments: Segments) -> Tensor:
        tokens, heads, width = query.shape
        key, value = expanded.tensor_split([width - rotary.shape[2]], dim=2)
        out, log_sums = query.new_empty(tokens, heads, value.shape[2]), query.new_empty(heads, tokens)
        ctx.scale, ctx.segments = scale, segments
        ctx.save_for_backward(query, expanded, rotary, log_sums)
        sequences = _sequences(query, key, rotary.shape[2], value, scale, segments)
        parts = (query, native.strided(key), rotary, native.strided(value))
        native.call("attention", ctypes.byref(sequences), *parts, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, expanded, rotary, log_sums = ctx.saved_tensors
        split = query.shape[2] - rotary.shape[2]
        key, value = expanded.tensor_split([split], dim=2)
        of_query, of_expanded = torch.empty_like(query), torch.empty_like(expanded)
        of_key, of_value = of_expanded.tensor_split([split], dim=2)
        of_rotary = rotary.new_empty(len(rotary), query.shape[1], rotary.shape[2])  # each head's part
        sequences = _sequences(query, key, rotary.shape[2], value, ctx.scale, ctx.segments)
        given = (query, native.strided(key), rotary, native.strided(value), log_sums, gradient.contiguous())
        gradients = (of_query, native.strided(of_key), of_rotary, native.strided(of_value))
        native.call("attention_backward", ctypes.byref(sequences), *given, *gradients)
        return of_query, of_expanded, of_rotary.sum(1, keepdim=True), None, None
