"""The loss of GRPO and of its descendants, one function per formula.

Shapes: S samples, P predictions (tokens of completions) of a packed run. In nats.
A minibatch's loss is a weighted sum over all its predictions. The weights are known before anything is run forward, so
the loss does not depend on how the minibatch is cut into runs.
Different from the textbook: where the policy has not moved since the rollout, the ratio is exp(log p − stop_gradient(
log p)), 1 with the right gradient, and no forward pass is spent on old log-probabilities.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.params import PolicyLoss
from pipeline.rl.trajectories import PolicyBatch

SUMS = ("entropy", "kl", "clipped_low", "clipped_high", "gap_mean", "importance_capped")
"""Figures that are means over predictions: a run gives their sums."""

PEAKS = ("ratio_max", "gap_max")
"""Figures that are the largest value of any prediction."""


class LossTerms(NamedTuple):
    """What a packed run adds to the loss and to the figures of its minibatch."""

    loss: Tensor  # scalar
    sums: Tensor  # (SUMS,) without gradient
    peaks: Tensor  # (PEAKS,) without gradient


def token_weight(
    completion: int, completions: Sequence[int], normalisation: Literal["sequence", "token", "constant"], longest: int
) -> float:
    """Weight of each token of a completion in a minibatch of `completions` (all lengths, in tokens).

    sequence: 1 / (S · own length), the mean over samples of their tokens' mean (GRPO, arXiv 2402.03300, eq. 3).
    token: 1 / all tokens, so that long completions count by their length (DAPO, arXiv 2503.14476, section 3.3).
    constant: 1 / (S · `longest`), the token limit, so that a loss per token does not depend on how long the others are
    (Dr. GRPO, arXiv 2503.20783, section 3.2).
    """
    match normalisation:
        case "sequence":
            return 1 / (len(completions) * completion)
        case "token":
            return 1 / sum(completions)
        case "constant":
            return 1 / (len(completions) * longest)


def ratios(difference: Tensor, completions: Tensor, sample: Tensor, kind: Literal["token", "sequence"]) -> Tensor:
    """New over old probability, (P,), from `difference` (P,) = log p − old log p.

    token: each token's own. sequence: the geometric mean over its completion, s = exp(mean of differences), the same
    for all its tokens (GSPO, arXiv 2507.18071, eq. 7); its clip bounds are by two orders of magnitude tighter.
    """
    if kind == "token":
        return difference.exp()
    return torch.segment_reduce(difference, "mean", lengths=completions).exp()[sample]


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """min(ρ A, clip(ρ, 1 − low, 1 + high) A), (P,): PPO's objective (arXiv 1707.06347, eq. 7).

    The two bounds are apart as in DAPO (arXiv 2503.14476, section 3.1), where a higher upper one lets unlikely tokens
    rise.
    """
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def divergence(log_probabilities: Tensor, reference: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimate of KL(policy ‖ reference) from each token drawn from the policy, (P,).

    With d = log reference − log policy: k1 = −d, k2 = d² / 2, k3 = exp(d) − 1 − d (Schulman 2020, “Approximating KL
    Divergence”). GRPO takes k3, unbiased and never negative. As part of a loss k1 has a gradient of mean zero: it holds
    nothing back.
    """
    d = reference - log_probabilities
    match kind:
        case "k1":
            return -d
        case "k2":
            return d.square() / 2
        case "k3":
            return d.expm1() - d


def importance(trainer: Tensor, engine: Tensor, cap: float) -> Tensor:
    """min(p_trainer / p_engine, cap) of each sampled token, (P,), without gradient.

    Makes up for an engine that draws from slightly other probabilities than the trainer's (truncated importance
    sampling: Yao et al. 2025, “Your Efficient RL Framework Secretly Brings You Off-Policy RL Training”).
    """
    return (trainer - engine).exp().clamp(max=cap).detach()


def policy_loss(
    log_probabilities: Tensor, entropy: Tensor, reference: Tensor | None, batch: PolicyBatch, options: PolicyLoss
) -> LossTerms:
    """Σ weight · (−w · clipped(ρ, A) + β · KL) over the run's predictions.

    log_probabilities (P,), the policy's; entropy (P,); reference (P,), or None where there is none.
    """
    now = log_probabilities.detach()
    old = now if batch.old is None else batch.old
    rollout = old if options.old == "trainer" else now  # what the trainer says of the tokens that the engine drew
    ratio = ratios(log_probabilities - old, batch.completions, batch.sample, options.ratio)
    gain = clipped(ratio, batch.advantages, options.clip_low, options.clip_high)
    if options.importance_cap is not None:
        gain = gain * importance(rollout, batch.engine, options.importance_cap)
    losses = -gain
    if reference is not None:
        losses = losses + options.kl_coefficient * divergence(log_probabilities, reference, options.kl)
    gap, ratio = rollout - batch.engine, ratio.detach()
    means = {
        "entropy": entropy,
        "kl": torch.zeros_like(now) if reference is None else divergence(now, reference, "k3"),
        "clipped_low": (batch.advantages < 0) & (ratio < 1 - options.clip_low),
        "clipped_high": (batch.advantages > 0) & (ratio > 1 + options.clip_high),
        "gap_mean": gap.abs(),
        "importance_capped": gap.exp() > (torch.inf if options.importance_cap is None else options.importance_cap),
    }
    peaks = {"ratio_max": ratio.max(), "gap_max": gap.abs().max()}
    return LossTerms(
        loss=(batch.weights * losses).sum(),
        sums=torch.stack([means[name].sum(dtype=torch.float64) for name in SUMS]),
        peaks=torch.stack([peaks[name] for name in PEAKS]),
    )
