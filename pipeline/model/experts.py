"""Mixture of experts: the router, the experts, their balance.

Shapes: T tokens, D hidden, E experts, k experts per token, I expert width.
Source: DeepSeek-V3 report (arXiv 2412.19437) sections 2.1.2 and 2.1.3; Qwen3's router is a plain softmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from pipeline.errors import InputError
from pipeline.model import native
from pipeline.model.dispatch import Matrices, fused, run_experts
from pipeline.model.families import membership
from pipeline.model.kernels import sigmoid
from pipeline.model.layers import FeedForward
from pipeline.model.linear import linear
from pipeline.model.low_rank import LowRank
from pipeline.model.parts import Mixture
from pipeline.model.stored import StoredExperts

MOST_EXPERTS = 1024
"""That cpp/experts.h chooses among."""


@dataclass(frozen=True)
class Routing:
    """One layer's choice: experts (T, k) int64, their weights (T, k), and every expert's score (T, E), float32."""

    experts: Tensor
    weights: Tensor
    scores: Tensor


class Router(nn.Module):
    """Scores every expert for every token and chooses k of them.

    The balancing bias counts for the choice only; weights come from the scores (report eq. 16).
    """

    e_score_correction_bias: Tensor

    def __init__(self, hidden_size: int, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture
        self.weight = nn.Parameter(torch.empty(mixture.experts, hidden_size))
        if mixture.scoring == "sigmoid":
            self.register_buffer("e_score_correction_bias", torch.zeros(mixture.experts))

    def forward(self, x: Tensor, replay: Tensor | None) -> Routing:
        """x (T, D); `replay` (T, k) takes the place of the router's own choice, the weights stay its own."""
        mixture = self.mixture
        # In float32 even under autocast: rounded scores would tie, and tokens change experts from run to run.
        with torch.autocast(x.device.type, enabled=False):
            logits = linear(x.float(), self.weight.float())
        scores = sigmoid(logits) if mixture.scoring == "sigmoid" else logits.softmax(-1)
        experts = self._choose(scores.detach()) if replay is None else replay
        weights = scores.gather(1, experts)
        if mixture.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return Routing(experts, weights * mixture.routed_scaling_factor, scores)

    def _choose(self, scores: Tensor) -> Tensor:
        mixture = self.mixture
        bias = self.e_score_correction_bias if mixture.scoring == "sigmoid" else None
        return choose_experts(scores, bias, mixture.top_k, mixture.groups, mixture.top_groups)


def choose_experts(scores: Tensor, bias: Tensor | None, top_k: int, groups: int = 1, top_groups: int = 1) -> Tensor:
    """The k experts (T, k) with the largest scores (T, E) plus bias (E,).

    Only the `top_groups` of `groups` with the largest sum of their two best experts may be chosen from.
    """
    given = (scores,) if bias is None else (scores, bias)
    if native.usable(*given) and scores.shape[1] <= MOST_EXPERTS:
        chosen = scores.new_empty(len(scores), top_k, dtype=torch.int64)
        native.call("choose_experts", *scores.shape, top_k, groups, top_groups, scores.contiguous(), bias, chosen)
        return chosen
    if bias is not None:
        scores = scores + bias
    if top_groups < groups:
        grouped = scores.unflatten(1, (groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(top_groups).indices
        allowed = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter(1, best, True)
        scores = grouped.masked_fill(~allowed.unsqueeze(-1), -torch.inf).flatten(1)
    return scores.topk(top_k).indices


class Experts(nn.Module):
    """E feed-forwards, fused in memory: gate_up (E, 2I, D) and down (E, D, I)."""

    gate_up_adapter: LowRank | None
    down_adapter: LowRank | None

    def __init__(self, hidden_size: int, mixture: Mixture) -> None:
        super().__init__()
        experts, size = mixture.experts, mixture.expert_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden_size, size))
        for name in ("gate_up_adapter", "down_adapter"):
            self.register_module(name, None)

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor, base: Tensor) -> Tensor:
        """x and base (T, D), experts and weights (T, k) -> base + sum over k of weight · expert(x), (T, D)."""
        if self.gate_up_adapter is None:
            return run_experts(x, self.gate_up_proj, self.down_proj, experts, weights, base)
        given = (x, experts, weights, base)
        if not torch.is_grad_enabled():
            return self._adapted(*given)
        # Merged matrices of all layers, kept for the backward pass, would be a second copy of the experts: made again.
        return checkpoint(self._adapted, *given, use_reentrant=False, preserve_rng_state=False)

    def _adapted(self, x: Tensor, experts: Tensor, weights: Tensor, base: Tensor) -> Tensor:
        """`forward` by merged matrices, so that the kernels, which take all experts at once, know no adapter."""
        assert self.gate_up_adapter is not None
        assert self.down_adapter is not None
        gate_up, down = self.gate_up_adapter.added_to(self.gate_up_proj), self.down_adapter.added_to(self.down_proj)
        return run_experts(x, gate_up, down, experts, weights, base)

    @property
    def size(self) -> int:
        """Numbers in all matrices."""
        return self.gate_up_proj.numel() + self.down_proj.numel()

    def matrices(self) -> tuple[Matrices, Matrices]:
        """Where a kernel finds gate_up and down."""
        return fused(self.gate_up_proj), fused(self.down_proj)


class MixtureOfExperts(nn.Module):
    """The routed experts that each token chose, plus the shared expert where there is one."""

    def __init__(self, hidden_size: int, mixture: Mixture) -> None:
        super().__init__()
        self.gate = Router(hidden_size, mixture)
        self.experts: Experts | StoredExperts = Experts(hidden_size, mixture)
        self.shared_experts = FeedForward(hidden_size, mixture.shared_size) if mixture.shared_size else None

    def forward(self, x: Tensor, replay: Tensor | None, residual: Tensor) -> tuple[Tensor, Routing]:
        """residual + shared expert(x) + the chosen experts' weighted sum, (T, D), and the choice."""
        routing = self.gate(x, replay)
        base = residual if self.shared_experts is None else self.shared_experts(x, residual)
        return self.experts(x, routing.experts, routing.weights, base), routing


def expert_load(routing: Sequence[Routing], texts: Tensor | None = None) -> Tensor:
    """How many tokens each expert got, (layers, E) int64; a token counts once for each of its `texts` (T,)."""
    choices = None if texts is None else texts.repeat_interleave(routing[0].experts.shape[1])
    loads = [torch.bincount(r.experts.flatten(), choices, minlength=r.scores.shape[1]) for r in routing]
    return torch.stack(loads).long()


def balance_loss(routing: Sequence[Routing], lengths: Sequence[int], families: Sequence[int] | None = None) -> Tensor:
    """Sequence-wise balance loss, report eq. 17-20 without its factor: mean over sequences, sum over layers; scalar.

    1 per layer when every sequence spreads its tokens and its scores evenly. As in eq. 18, an expert counts as chosen
    if its score is among the k largest, whatever the balancing bias made of it. With `families` the sequences are
    their texts, and `lengths` those of their segments.
    """
    if not routing:
        raise InputError("balance_loss: the model has no mixture of experts")
    device = routing[0].scores.device
    sizes = torch.tensor(lengths, device=device)
    segment = torch.arange(len(lengths), device=device).repeat_interleave(sizes)
    parts = membership((1,) * len(lengths) if families is None else families, device)
    return torch.stack([_layer_balance_loss(layer, segment, sizes, *parts) for layer in routing]).sum()


def _layer_balance_loss(routing: Routing, segment: Tensor, sizes: Tensor, text: Tensor, part: Tensor) -> Tensor:
    """Of tokens in `segment` (T,), segments of `sizes` (S,), each `part` (M,) of a `text` (M,)."""
    scores, top_k = routing.scores, routing.experts.shape[1]
    segments, experts, texts = len(sizes), scores.shape[1], int(text[-1]) + 1
    chosen = choose_experts(scores.detach(), None, top_k) + segment[:, None] * experts
    counts = torch.bincount(chosen.flatten(), minlength=segments * experts).view(segments, experts)
    of_texts = counts.new_zeros(texts, experts).index_add_(0, text, counts[part])
    lengths = sizes.new_zeros(texts).index_add_(0, text, sizes[part])[:, None]
    share = of_texts * experts / (top_k * lengths)  # f, eq. 18
    # Σ_i f_i P_i per text is the mean over its tokens of Σ_i f_i s'_i: no need to form P. A token has its part in the
    # means of all its texts.
    factors = share.new_zeros(segments, experts).index_add_(0, part, (share / lengths)[text])
    return _NormalisedDot.apply(scores, factors.index_select(0, segment)).sum() / texts


class _NormalisedDot(torch.autograd.Function):
    """Σ_i f_i s'_i of each token with s' = s / Σ s (eq. 19), for s and f (T, E); the gradient of s in one pass."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, share: Tensor) -> Tensor:
        total = scores.sum(-1)
        dot = torch.linalg.vecdot(scores, share) / total
        ctx.save_for_backward(share, total, dot)
        return dot

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        share, total, dot = ctx.saved_tensors
        return (share - dot[:, None]).mul_((grad / total)[:, None]), None
