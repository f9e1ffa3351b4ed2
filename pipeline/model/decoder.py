"""The decoder: embeddings, blocks of attention and feed-forward, a final norm, and the unembedding apart.

Shapes: T tokens of all sequences in a row, D hidden, V vocabulary, E experts, k experts per token.
Different from the textbook: tokens come as one flat run without padding, and `forward` ends at the hidden states, so
that a loss can unembed them in chunks and never holds T × V logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.errors import InputError
from pipeline.model.attention import AttentionContext
from pipeline.model.config import ModelConfig
from pipeline.model.experts import Experts, MixtureOfExperts, Router, Routing
from pipeline.model.layers import (
    FeedForward,
    GroupedQueryAttention,
    Linear,
    MultiHeadLatentAttention,
    RMSNorm,
)
from pipeline.model.linear import linear
from pipeline.model.low_rank import LowRank
from pipeline.model.parts import LatentAttention
from pipeline.model.rope import rotations


@dataclass(frozen=True)
class Output:
    """Hidden states after the final norm, (T, D), and the routing of each mixture layer in order."""

    hidden: Tensor
    routing: tuple[Routing, ...]


@dataclass(frozen=True)
class ModelSize:
    """Parameters in all, and those that act on one token."""

    total: int
    activated: int

    def figures(self) -> dict[str, float]:
        """As metrics of a stage: every report of a model says both, and the share."""
        return {
            "parameters": self.total,
            "activated_parameters": self.activated,
            "activated_share": self.activated / self.total,
        }


class Embedding(nn.Embedding):
    """nn.Embedding that leaves its weights unset, as `Linear` does."""

    def reset_parameters(self) -> None:
        pass


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); the sum is part of either one's last product."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.input_layernorm = RMSNorm(hidden, config.rms_norm_eps)
        self.self_attn = (
            MultiHeadLatentAttention(config, config.attention, layer)
            if isinstance(config.attention, LatentAttention)
            else GroupedQueryAttention(config, config.attention, layer)
        )
        self.post_attention_layernorm = RMSNorm(hidden, config.rms_norm_eps)
        self.sparse = config.mixture is not None and layer in config.mixture.layers
        self.mlp = (
            MixtureOfExperts(hidden, config.mixture)
            if config.mixture is not None and self.sparse
            else FeedForward(hidden, config.intermediate_size, config.mlp_bias)
        )

    def forward(
        self, x: Tensor, turns: Tensor, context: AttentionContext, replay: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        x = self.self_attn(self.input_layernorm(x), turns, context, residual=x)
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MixtureOfExperts):
            return self.mlp(normed, replay, residual=x)
        return self.mlp(normed, residual=x), None


class Decoder(nn.Module):
    """A causal language model of any of the five types; its weights are unset until `init_weights` or a checkpoint."""

    checkpoint_activations = False
    """Keep no more of a block than its input for the backward pass, which computes the block once more."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention: AttentionContext,
        replay: Sequence[Tensor] | None = None,
    ) -> Output:
        """tokens and positions (T,) int64 under an attention context.

        `replay`, experts (T, k) per mixture layer as an earlier `Output.routing` recorded them, takes the place of the
        routers' own choice, so that a trainer moves the experts that the rollout really used.
        """
        latent = self.config.attention
        rotary = latent.qk_rope_head_dim if isinstance(latent, LatentAttention) else latent.head_dim
        turns = rotations(self.config.rope, positions, rotary)
        x = self.embed_tokens(tokens)
        routing: list[Routing] = []
        choices = repeat(None) if replay is None else iter(replay)
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        for block in self.layers:
            given = (x, turns, attention, next(choices) if block.sparse else None)
            # The routing is that of the first pass: what the second one chooses, the same, nobody counts.
            x, routed = (
                checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False) if recompute else block(*given)
            )
            if routed is not None:
                routing.append(routed)
        return Output(self.norm(x), tuple(routing))

    @property
    def unembedding(self) -> Tensor:
        """The matrix (V, D) from hidden states to logits; the embedding itself where the two are tied."""
        return self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (T, D) -> logits (T, V)."""
        return linear(hidden, self.unembedding)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw matrices from N(0, initializer_range²), set norms to 1 and biases to 0; the same bits on any device."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                drawn = torch.empty(parameter.shape).normal_(0.0, self.config.initializer_range, generator=generator)
                parameter.copy_(drawn)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        for bias in self.buffers():
            bias.zero_()

    def cast(self, dtype: torch.dtype) -> Self:
        """Cast the parameters; the balancing biases stay float32, in which alone steps of 0.001 add up."""
        routers = self._routers() if self.config.has_balance_bias else []
        biases = [router.e_score_correction_bias for router in routers]
        self.to(dtype)
        for router, bias in zip(routers, biases, strict=True):
            router.e_score_correction_bias = bias
        return self

    def size(self) -> ModelSize:
        """Of the routed experts only k of E act on a token; everything else does, embeddings included.

        An adapter does not count: what is saved has none.
        """
        own = sum(
            parameter.numel()
            for part in self.modules()
            if not isinstance(part, Experts | LowRank)
            for parameter in part.parameters(recurse=False)
        )
        routed = sum(part.experts.size for part in self.modules() if isinstance(part, MixtureOfExperts))
        total = own + routed
        mixture = self.config.mixture
        idle = 0 if mixture is None else routed - routed * mixture.top_k // mixture.experts
        return ModelSize(total, total - idle)

    @torch.no_grad()
    def update_balance(self, load: Tensor, rate: float) -> None:
        """Move each router's bias by `rate` towards an even load, (layers, E) as `expert_load` gives it.

        Up for an expert that got less than the mean, down for one that got more (report section 2.1.2). Under an
        adapter nothing moves: it must be all that the model differs by.
        """
        if not self.config.has_balance_bias:
            raise InputError(f"model_type = {self.config.model_type}: its routers have no balancing bias")
        if any(isinstance(part, LowRank) for part in self.modules()):
            return
        for router, counts in zip(self._routers(), load.float(), strict=True):
            router.e_score_correction_bias += rate * (counts.mean() - counts).sign()

    def _routers(self) -> list[Router]:
        return [module for module in self.modules() if isinstance(module, Router)]
