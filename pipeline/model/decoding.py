"""A decoding step of a small model on a CPU as one call of cpp/decoding.h.

Different from the textbook: decoder.py, layers.py and cache.py say the same in a hundred operations, and for one token
of some hundred sequences starting them costs more than what they compute. A token's bits do not depend on which other
tokens are in the step.
Shapes: B rows, V vocabulary, k experts per token.
"""

import ctypes
from typing import Self

import torch
from torch import Tensor

from pipeline.model import native
from pipeline.model.cache import SlotCache
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Block, Decoder
from pipeline.model.dispatch import Matrices
from pipeline.model.experts import MOST_EXPERTS, Experts, MixtureOfExperts
from pipeline.model.layers import FeedForward, GroupedQueryAttention, Linear, MultiHeadLatentAttention, RMSNorm
from pipeline.model.parts import LatentAttention
from pipeline.model.rope import rotations

LARGEST = 2**21
"""Numbers in a matrix of weights up to which this is used: larger ones do not stay in a core's cache."""


class NativeDecoding:
    """One more token for each of the first rows of a cache. The weights may change between calls, in place.

    In bfloat16 the experts' matrices are read as they were at the last `refresh`, from copies of half their size: what
    a step takes is mostly the time to fetch them.
    """

    def __init__(self, model: Decoder, cache: SlotCache, bfloat16: bool) -> None:
        self._model, self._cache, self._bfloat16 = model, cache, bfloat16
        self._rounded = _rounded(model) if bfloat16 else {}
        self._turns = rotations(model.config.rope, torch.arange(cache.max_length), _rotary(model.config)).contiguous()
        self._weights = [*model.parameters(), *model.buffers()]
        self._places: list[int] = []  # where the weights lay when they were described
        self._layers: ctypes.Array[_Layer]
        self._decoder: _Decoder

    @classmethod
    def of(cls, model: Decoder, cache: SlotCache, *, bfloat16: bool = False) -> Self | None:
        """None where the kernel does not take this model, or would not gain.

        `bfloat16` computes those products in it that are so in training under that dtype.
        """
        mixture, matrices = model.config.mixture, [p for p in model.layers.parameters() if p.ndim == 2]
        fits = max(map(torch.numel, matrices)) <= LARGEST and (mixture is None or mixture.experts <= MOST_EXPERTS)
        return cls(model, cache, bfloat16) if fits and native.usable(*model.parameters(), *cache.planes) else None

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the experts' matrices to bfloat16, if that is asked for, as they are now."""
        for part, copies in self._rounded.items():
            for copy, matrices in zip(copies, (part.gate_up_proj, part.down_proj), strict=True):
                copy.copy_(matrices)

    def run(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B,) int64 of rows that hold `lengths` (B,) int64 each -> logits (B, V), experts (layers, B, k)."""
        config, rows = self._model.config, len(tokens)
        assert int(lengths.max()) < self._cache.max_length, (
            f"the cache of {self._cache.max_length} tokens a row is full"
        )
        places = [weight.data_ptr() for weight in self._weights]
        if places != self._places:
            assert native.usable(*self._weights), "the model is no longer of the type that it was made for"
            self._describe()
            self._places = places
        choices = (0, 0) if config.mixture is None else (len(config.mixture.layers), config.mixture.top_k)
        chosen = torch.empty(choices[0], rows, choices[1], dtype=torch.int64)
        logits = torch.empty(rows, config.vocab_size)
        given = (tokens.contiguous(), lengths.contiguous(), chosen, logits)
        native.call("decode", self._bfloat16, ctypes.byref(self._decoder), rows, *given)
        return logits, chosen

    def _describe(self) -> None:
        model = self._model
        layers = [
            _layer(block, [plane[layer] for plane in self._cache.planes])
            for layer, block in enumerate(model.layers)
            if isinstance(block, Block)
        ]
        for layer, block in zip(layers, model.layers, strict=True):
            for part in block.modules():
                if isinstance(part, Experts) and part in self._rounded:
                    gate_up, down = self._rounded[part]
                    layer.experts_gate_up.pairs, layer.experts_down.pairs = gate_up.data_ptr(), down.data_ptr()
        self._layers = (_Layer * len(layers))(*layers)
        _, row, head, place, _ = self._cache.planes[0].stride()
        self._decoder = _Decoder(
            layers=ctypes.addressof(self._layers),
            count=len(layers),
            **_shape(model),
            embedding=model.embed_tokens.weight.data_ptr(),
            norm=_norm(model.norm),
            unembedding=_product(model.unembedding),
            turns=self._turns.data_ptr(),
            row=row,
            head=head,
            place=place,
        )


def _rounded(model: Decoder) -> dict[Experts, tuple[Tensor, Tensor]]:
    """Room for gate_up (E, 2I, D) and down (E, D, I) in bfloat16 of what has experts.

    Two neighbours in memory are a pair, as cpp/terms.h has it; with an odd number in a row they would not be.
    """
    parts = [part for part in model.modules() if isinstance(part, Experts)]
    matrices = [(part, (part.gate_up_proj, part.down_proj)) for part in parts]
    return {
        part: (gate_up.bfloat16(), down.bfloat16())
        for part, (gate_up, down) in matrices
        if gate_up.shape[2] % 2 == down.shape[2] % 2 == 0
    }


# ---------------------------------------------------------------- the structures of cpp/decoding.h

_POINTER, _INTEGER, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Product(ctypes.Structure):
    _fields_ = (("weight", _POINTER), ("bias", _POINTER), ("outputs", _INTEGER), ("inputs", _INTEGER))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _POINTER), ("size", _INTEGER), ("eps", _NUMBER))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in ("before_attention", "before_feed_forward")),
        *((name, _Product) for name in ("query_down", "query", "key", "value", "output")),
        *((name, _Norm) for name in ("query_norm", "key_norm")),
        *((name, _Product) for name in ("gate_up", "down", "router")),
        ("balance", _POINTER),
        *((name, Matrices) for name in ("experts_gate_up", "experts_down")),
        *((name, _POINTER) for name in ("keys", "values")),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", _POINTER),
        *((name, _INTEGER) for name in ("count", "V", "D", "H", "G", "d", "R", "e", "C", "interleaved")),
        ("scale", _NUMBER),
        *((name, _INTEGER) for name in ("E", "k", "I", "groups", "top_groups", "softmax", "normalised")),
        ("routed_scale", _NUMBER),
        ("embedding", _POINTER),
        ("norm", _Norm),
        ("unembedding", _Product),
        ("turns", _POINTER),
        *((name, _INTEGER) for name in ("row", "head", "place", "most")),
    )


def _product(weight: Tensor, bias: Tensor | None = None) -> _Product:
    return _Product(weight.data_ptr(), None if bias is None else bias.data_ptr(), *weight.shape)


def _linear(linear: Linear) -> _Product:
    return _product(linear.weight, linear.bias)


def _norm(norm: RMSNorm) -> _Norm:
    return _Norm(norm.weight.data_ptr(), len(norm.weight), norm.eps)


def _layer(block: Block, cache: list[Tensor]) -> _Layer:
    parts: dict[str, ctypes.Structure | int] = {
        "before_attention": _norm(block.input_layernorm),
        "before_feed_forward": _norm(block.post_attention_layernorm),
        "output": _linear(block.self_attn.o_proj),
        **dict(zip(("keys", "values"), (plane.data_ptr() for plane in cache), strict=False)),
    }
    attention = block.self_attn
    if isinstance(attention, MultiHeadLatentAttention):
        parts |= {"key": _linear(attention.kv_a_proj_with_mqa), "key_norm": _norm(attention.kv_a_layernorm)}
        parts["value"] = _linear(attention.kv_b_proj)
        if attention.shape.q_lora_rank is None:
            parts["query"] = _linear(attention.q_proj)
        else:
            parts |= {"query_down": _linear(attention.q_a_proj), "query_norm": _norm(attention.q_a_layernorm)}
            parts["query"] = _linear(attention.q_b_proj)
    elif isinstance(attention, GroupedQueryAttention):
        parts |= {name: _linear(getattr(attention, f"{name[0]}_proj")) for name in ("query", "key", "value")}
        if isinstance(attention.q_norm, RMSNorm) and isinstance(attention.k_norm, RMSNorm):
            parts |= {"query_norm": _norm(attention.q_norm), "key_norm": _norm(attention.k_norm)}
    return _Layer(**parts, **_feed_forward(block.mlp))


def _feed_forward(part: FeedForward | MixtureOfExperts | None) -> dict[str, ctypes.Structure | int]:
    if part is None:
        return {}
    if isinstance(part, FeedForward):
        return {"gate_up": _linear(part.gate_up_proj), "down": _linear(part.down_proj)}
    parts: dict[str, ctypes.Structure | int] = {
        "router": _product(part.gate.weight),
        **dict(zip(("experts_gate_up", "experts_down"), part.experts.matrices(), strict=True)),
    }
    if part.gate.mixture.scoring == "sigmoid":
        parts["balance"] = part.gate.e_score_correction_bias.data_ptr()
    return parts | _feed_forward(part.shared_experts)


def _rotary(config: ModelConfig) -> int:
    attention = config.attention
    return attention.qk_rope_head_dim if isinstance(attention, LatentAttention) else attention.head_dim


def _shape(model: Decoder) -> dict[str, float]:
    config, attention, mixture = model.config, model.config.attention, model.config.mixture
    heads = config.num_attention_heads
    shape: dict[str, float] = {"V": config.vocab_size, "D": config.hidden_size, "H": heads, "R": _rotary(config)}
    rows = [max(p.shape) for p in model.layers.parameters() if p.ndim == 2]
    if isinstance(attention, LatentAttention):
        width = attention.qk_nope_head_dim + attention.qk_rope_head_dim
        shape |= {"G": 1, "d": width, "e": attention.v_head_dim, "C": attention.kv_lora_rank}
        shape |= {"interleaved": attention.rope_interleave}
        rows.append(heads * (attention.kv_lora_rank + attention.qk_rope_head_dim))
    else:
        shape |= {"G": attention.num_key_value_heads, "d": attention.head_dim, "e": attention.head_dim, "C": 0}
    first = model.layers[0]
    assert isinstance(first, Block)
    shape |= {"scale": first.self_attn.scale, "most": max(rows)}
    if mixture is not None:
        shape |= {"E": mixture.experts, "k": mixture.top_k, "I": mixture.expert_size, "groups": mixture.groups}
        shape |= {"top_groups": mixture.top_groups, "softmax": mixture.scoring == "softmax"}
        shape |= {"normalised": mixture.norm_topk_prob, "routed_scale": mixture.routed_scaling_factor}
    return shape
