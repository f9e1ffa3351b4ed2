"""The dense layers of a decoder block: projections, norms, the gated feed-forward and the two kinds of attention.

Shapes: T tokens of all sequences in a row, D hidden, H query heads, G key and value heads, d head width.
Parameters carry the names that checkpoints use, with one difference: gate and up projections of a feed-forward are one
matrix [gate; up] in memory, which halves the number of matrix products on the same input.
"""

import torch
from torch import Tensor, nn

from pipeline.model.attention import AttentionContext
from pipeline.model.config import ModelConfig
from pipeline.model.kernels import rms_norm, swiglu
from pipeline.model.linear import linear
from pipeline.model.low_rank import LowRank
from pipeline.model.parts import GroupedAttention, LatentAttention
from pipeline.model.rope import rotate, softmax_scale

# DeepSeek's norms inside latent attention do not follow rms_norm_eps, neither in its own code nor in transformers.
LATENT_NORM_EPS = 1e-6


class Linear(nn.Linear):
    """nn.Linear that leaves its weights unset: they come from `init_weights` or a checkpoint, not from global state."""

    adapter: LowRank | None

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_module("adapter", None)

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x · weightᵀ + bias + residual, and what the adapter adds where there is one."""
        out = linear(x, self.weight, self.bias, residual)
        return out if self.adapter is None else self.adapter(x, out)


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class FeedForward(nn.Module):
    """residual + down(silu(gate(x)) · up(x)), (T, D) -> (T, D)."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_up_proj(x)), residual)


class GroupedQueryAttention(nn.Module):
    """Queries in groups that share a key and value head (arXiv 2305.13245), with Qwen's biases and norms."""

    def __init__(self, config: ModelConfig, attention: GroupedAttention, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.scale = layer, attention.head_dim, attention.head_dim**-0.5
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.q_proj = Linear(hidden, heads * self.head_dim, attention.qkv_bias)
        self.k_proj = Linear(hidden, attention.num_key_value_heads * self.head_dim, attention.qkv_bias)
        self.v_proj = Linear(hidden, attention.num_key_value_heads * self.head_dim, attention.qkv_bias)
        self.o_proj = Linear(heads * self.head_dim, hidden, attention.output_bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if attention.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if attention.qk_norm else nn.Identity()

    def forward(self, x: Tensor, turns: Tensor, context: AttentionContext, residual: Tensor) -> Tensor:
        """residual + attention(x), (T, D) -> (T, D)."""
        query = self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim)))  # (T, H, d)
        key = self.k_norm(self.k_proj(x).unflatten(-1, (-1, self.head_dim)))  # (T, G, d)
        value = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (T, G, d)
        query, key = rotate(query, turns, interleaved=False), rotate(key, turns, interleaved=False)
        return self.o_proj(context.attend(self.layer, query, key, value, self.scale).flatten(1), residual)


class MultiHeadLatentAttention(nn.Module):
    """Keys and values from one low-rank latent per token plus one rotary key for all heads; V3 report section 2.1.1."""

    def __init__(self, config: ModelConfig, attention: LatentAttention, layer: int) -> None:
        super().__init__()
        self.layer, self.shape = layer, attention
        hidden, self.heads = config.hidden_size, config.num_attention_heads
        head_dim = attention.qk_nope_head_dim + attention.qk_rope_head_dim
        self.scale = softmax_scale(config.rope, head_dim)
        if attention.q_lora_rank is None:
            self.q_proj = Linear(hidden, self.heads * head_dim, bias=False)
        else:
            self.q_a_proj = Linear(hidden, attention.q_lora_rank, attention.bias)
            self.q_a_layernorm = RMSNorm(attention.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(attention.q_lora_rank, self.heads * head_dim, bias=False)
        self.kv_a_proj_with_mqa = Linear(hidden, attention.kv_lora_rank + attention.qk_rope_head_dim, attention.bias)
        self.kv_a_layernorm = RMSNorm(attention.kv_lora_rank, LATENT_NORM_EPS)
        expanded = self.heads * (attention.qk_nope_head_dim + attention.v_head_dim)
        self.kv_b_proj = Linear(attention.kv_lora_rank, expanded, bias=False)
        self.o_proj = Linear(self.heads * attention.v_head_dim, hidden, attention.bias)

    def forward(self, x: Tensor, turns: Tensor, context: AttentionContext, residual: Tensor) -> Tensor:
        """residual + attention(x), (T, D) -> (T, D)."""
        shape = self.shape
        query = rotate(self._query(x).unflatten(-1, (self.heads, -1)), turns, shape.rope_interleave)  # (T, H, d)
        latent, rotary = self.kv_a_proj_with_mqa(x).split([shape.kv_lora_rank, shape.qk_rope_head_dim], dim=-1)
        rotary = rotate(rotary.unsqueeze(1), turns, shape.rope_interleave)  # (T, 1, R)
        latent = self.kv_a_layernorm(latent)  # (T, C)
        attended = context.attend_latent(self.layer, query, latent, rotary, self.kv_b_proj, self.scale)
        return self.o_proj(attended.flatten(1), residual)

    def _query(self, x: Tensor) -> Tensor:
        if self.shape.q_lora_rank is None:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
