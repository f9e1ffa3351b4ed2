"""Rotary position embedding: frequencies of every scaling we support, and the rotation itself.

Shapes: T tokens, H heads, R rotary dimensions.
Different from the textbook: a pair of dimensions is one complex number, and a rotation one complex product, which reads
memory once where sines and cosines on halves read it six times; its backward is the product with the conjugate.
Interleaved pairs stay where they are; transformers gathers them into halves on the way, which changes the order of the
sum in query · key, not the sum.
Sources: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071) section 3; the llama 3.1 scaling as published with it.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model.parts import Rope


def rotations(rope: Rope, positions: Tensor, dim: int) -> Tensor:
    """The turn e^(i · angle) of every position (T,) for each pair of `dim` = R dimensions: (T, 1, R/2) complex64."""
    frequencies, scale = _frequencies_on(rope, dim, positions.device)
    angles = positions[:, None, None].float() * frequencies
    return torch.polar(torch.full_like(angles, scale), angles)


@cache
def _frequencies_on(rope: Rope, dim: int, device: torch.device) -> tuple[Tensor, float]:
    """`inverse_frequencies`, kept on the device: a decoding step takes no longer than working them out."""
    with torch.inference_mode(False):  # for training too, whoever asks first
        frequencies, scale = inverse_frequencies(rope, dim)
        return frequencies.to(device), scale


def inverse_frequencies(rope: Rope, dim: int) -> tuple[Tensor, float]:
    """Radians per position of each pair, (dim/2,), and the factor on cosine and sine (YaRN's attention factor)."""
    plain = 1.0 / rope.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    if rope.rope_type == "linear":
        return plain / rope.factor, 1.0
    if rope.rope_type == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.rope_type == "yarn":
        return _yarn(rope, plain, dim), _yarn_attention_factor(rope)
    return plain, 1.0


def softmax_scale(rope: Rope, head_dim: int) -> float:
    """Scale of query · key in latent attention: 1/√d, times DeepSeek's mscale² when YaRN stretches the context."""
    mscale = _mscale(rope.factor, rope.mscale_all_dim) if rope.rope_type == "yarn" and rope.mscale_all_dim else 1.0
    return head_dim**-0.5 * mscale * mscale


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Slow pairs are slowed by the factor, fast ones kept, those between interpolated by turns per trained context."""
    turns = rope.original_max_position_embeddings * plain / (2 * math.pi)
    keep = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return (1 - keep) * plain / rope.factor + keep * plain


def _yarn(rope: Rope, plain: Tensor, dim: int) -> Tensor:
    def pair_with(turns: float) -> float:
        """The (fractional) pair that makes this many turns over the trained context."""
        context = rope.original_max_position_embeddings
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    slowed = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)
    return slowed * plain / rope.factor + (1 - slowed) * plain


def _yarn_attention_factor(rope: Rope) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotate(x: Tensor, turns: Tensor, interleaved: bool) -> Tensor:
    """Turn the last R dimensions of x (T, H, d), pair by pair, by `turns` (T, 1, R/2) as `rotations` gives them.

    The two numbers of a pair are neighbours if interleaved, else R/2 apart.
    """
    if not torch.is_grad_enabled():
        return _rotated(x, turns, interleaved)
    return _Rotation.apply(x, turns, interleaved)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turns: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(turns)
        ctx.interleaved = interleaved
        return _rotated(x, turns, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (turns,) = ctx.saved_tensors
        return _rotated(grad, turns.conj(), ctx.interleaved), None, None


def _rotated(x: Tensor, turns: Tensor, interleaved: bool) -> Tensor:
    plain, rotary = x.tensor_split([x.shape[-1] - 2 * turns.shape[-1]], dim=-1)
    rotary = rotary.to(turns.real.dtype).contiguous()
    if interleaved:
        turned = torch.view_as_real(torch.view_as_complex(rotary.unflatten(-1, (-1, 2))) * turns).flatten(-2)
        return torch.cat((plain, turned.to(x.dtype)), dim=-1)
    turned = torch.complex(*rotary.chunk(2, dim=-1)) * turns
    return torch.cat((plain, turned.real.to(x.dtype), turned.imag.to(x.dtype)), dim=-1)
