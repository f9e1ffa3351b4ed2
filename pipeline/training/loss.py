"""Cross-entropy and log-probabilities of next tokens without ever holding all logits.

P predictions over V tokens would be a P × V matrix, for a large vocabulary by far the largest tensor of a step. Here
rows go through the unembedding in chunks.
Different from the textbook: the cross-entropy's gradient is computed in the forward pass, chunk by chunk, while the
chunk's logits are at hand (as in Liger Kernel, Hsu et al. 2024, section 3.2), so nothing is computed twice and only
gradients are kept. What becomes of a log-probability is not known in the forward pass; its backward makes the chunk's
logits once more.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model.linear import linear, linear_gradient

CHUNK = 2**25
"""Logits held at a time: 128 MiB of float32."""


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, unembedding: Tensor, predictors: Tensor, targets: Tensor) -> Tensor:
        weight = unembedding.to(hidden.dtype)
        total = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.zeros_like(hidden)
        weight_gradient = torch.zeros_like(unembedding) if ctx.needs_input_grad[1] else None
        size = max(1, CHUNK // len(weight))
        for rows, target in zip(predictors.split(size), targets.split(size), strict=True):
            chunk = hidden.index_select(0, rows)
            log_probabilities = torch.log_softmax(linear(chunk, weight), dim=1, dtype=torch.float32)
            total -= log_probabilities.gather(1, target[:, None]).sum()
            difference = log_probabilities.exp_()  # softmax − one-hot, the loss's gradient in the logits
            difference[torch.arange(len(target), device=target.device), target] -= 1
            difference = difference.to(hidden.dtype)
            hidden_gradient.index_copy_(0, rows, linear_gradient(chunk, weight, difference, weight_gradient))
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        of_weight = None if weight_gradient is None else weight_gradient * scale
        return hidden_gradient * scale.to(hidden_gradient.dtype), of_weight, None, None


def cross_entropy(hidden: Tensor, unembedding: Tensor, predictors: Tensor, targets: Tensor) -> Tensor:
    """Sum of −log p(target) in nats, a float32 scalar.

    hidden (T, D), whose dtype the products are computed in; unembedding (V, D); predictors (P,) int64, the rows of
    `hidden` that count, each once; targets (P,) int64, what each of them should predict.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return _CrossEntropy.apply(hidden, unembedding, predictors, targets)


class _TokenLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, unembedding: Tensor, predictors: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, unembedding, predictors, targets)
        ctx.temperature = temperature
        weight = unembedding.to(hidden.dtype)
        chosen, entropy = [], []
        size = max(1, CHUNK // len(weight))
        for rows, target in zip(predictors.split(size), targets.split(size), strict=True):
            log_probabilities = _log_softmax(hidden.index_select(0, rows), weight, temperature)
            chosen.append(log_probabilities.gather(1, target[:, None]).squeeze(1))
            entropy.append(-(log_probabilities.exp() * log_probabilities).sum(1))
        entropies = torch.cat(entropy)
        ctx.mark_non_differentiable(entropies)
        return torch.cat(chosen), entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden, unembedding, predictors, targets = ctx.saved_tensors
        weight = unembedding.to(hidden.dtype)
        hidden_gradient = torch.zeros_like(hidden)
        weight_gradient = torch.zeros_like(unembedding) if ctx.needs_input_grad[1] else None
        size = max(1, CHUNK // len(weight))
        parts = (predictors.split(size), targets.split(size), (gradient / ctx.temperature).split(size))
        for rows, target, scale in zip(*parts, strict=True):
            chunk = hidden.index_select(0, rows)
            difference = _log_softmax(chunk, weight, ctx.temperature).exp_().mul_(-scale[:, None])
            difference[torch.arange(len(target), device=target.device), target] += scale
            difference = difference.to(hidden.dtype)  # scale · (one-hot − softmax)
            hidden_gradient.index_copy_(0, rows, linear_gradient(chunk, weight, difference, weight_gradient))
        return hidden_gradient, weight_gradient, None, None, None


def _log_softmax(chunk: Tensor, weight: Tensor, temperature: float) -> Tensor:
    precision = torch.promote_types(chunk.dtype, torch.float32)
    return torch.log_softmax(linear(chunk, weight).to(precision) / temperature, dim=1)


def token_log_probabilities(
    hidden: Tensor, unembedding: Tensor, predictors: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """log p(target) (P,) in nats, and the entropy (P,) of each prediction, which has no gradient; both float32.

    Of the distribution at `temperature` > 0: the softmax of logits / temperature. The tensors are those of
    `cross_entropy`; P may not be 0.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return _TokenLogProbabilities.apply(hidden, unembedding, predictors, targets, temperature)
