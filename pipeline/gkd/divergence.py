"""How far the student's next-token distribution q is from the teacher's p, without ever holding all logits.

    beta = 0        forward KL   Σ p log(p / q): the student has to cover all that the teacher might say
    beta = 1        reverse KL   Σ q log(q / p): the student has to keep to what the teacher would say
    0 < beta < 1    generalised Jensen-Shannon divergence (arXiv 2306.13649, section 2):
                    beta · KL(p ‖ m) + (1 − beta) · KL(q ‖ m) with m = beta · p + (1 − beta) · q

Different from the paper: its divergence is 0 at both ends of beta; here the ends are the two KLs, which it approaches
there but for a factor (beta, or 1 − beta).
As in pipeline/training/loss.py, rows go through both unembeddings in chunks, and the gradient is computed in the
forward pass, while a chunk's logits are at hand.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model.linear import linear, linear_gradient

CHUNK = 2**24
"""Logits of each of the two models held at a time: 64 MiB of float32."""


def divergence(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    predictors: Tensor,
    *,
    beta: float,
    temperature: float,
) -> Tensor:
    """Sum of the divergences in nats over the predictions, a float32 scalar with a gradient in the student alone.

    student and teacher: hidden states (T, D), whose dtype the products are computed in, and unembedding (V, D); D may
    differ, T and V not. predictors (P,) int64: the rows that count, each once. Both distributions are the softmax of
    logits / temperature.
    """
    hidden, unembedding = student
    assert len(unembedding) == len(teacher[1]), "teacher and student must have one vocabulary"
    fixed = (part.detach() for part in teacher)
    with torch.autocast(hidden.device.type, enabled=False):
        return _Divergence.apply(hidden, unembedding, *fixed, predictors, beta, temperature)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        unembedding: Tensor,
        teacher_hidden: Tensor,
        teacher_unembedding: Tensor,
        predictors: Tensor,
        beta: float,
        temperature: float,
    ) -> Tensor:
        weight, teacher_weight = unembedding.to(hidden.dtype), teacher_unembedding.to(teacher_hidden.dtype)
        total = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.zeros_like(hidden)
        weight_gradient = torch.zeros_like(unembedding) if ctx.needs_input_grad[1] else None
        for rows in predictors.split(max(1, CHUNK // len(weight))):
            chunk = hidden.index_select(0, rows)
            log_q = _log_softmax(chunk, weight, temperature)
            log_p = _log_softmax(teacher_hidden.index_select(0, rows), teacher_weight, temperature)
            value, gradient = pointwise(log_p, log_q, beta)
            total += value.sum()
            gradient = (gradient / temperature).to(hidden.dtype)
            hidden_gradient.index_copy_(0, rows, linear_gradient(chunk, weight, gradient, weight_gradient))
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        of_weight = None if weight_gradient is None else weight_gradient * scale
        return hidden_gradient * scale.to(hidden_gradient.dtype), of_weight, None, None, None, None, None


def pointwise(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Divergence (P,) of each row of two log-distributions (P, V), and its gradient (P, V) in the logits of q.

    In the logits the gradient is q · (g − Σ q g), g being the one in q: −p / q, log(q / p), (1 − beta) · log(q / m).
    """
    q = log_q.exp()
    if beta == 0:
        p = log_p.exp()
        return (p * (log_p - log_q)).sum(1), q - p
    if beta == 1:
        g = log_q - log_p
        value = (q * g).sum(1)
        return value, q * (g - value[:, None])
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    g = (1 - beta) * (log_q - log_m)
    of_q = (q * g).sum(1)
    return beta * (log_p.exp() * (log_p - log_m)).sum(1) + of_q, q * (g - of_q[:, None])


def _log_softmax(chunk: Tensor, weight: Tensor, temperature: float) -> Tensor:
    precision = torch.promote_types(chunk.dtype, torch.float32)
    return torch.log_softmax(linear(chunk, weight).to(precision) / temperature, dim=1)
