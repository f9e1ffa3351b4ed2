"""Elementwise parts of the decoder with a backward of their own, for fewer passes over memory than autograd makes.

At a few hundred hidden dimensions these passes, not the matrix products, are most of a step.
"""

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, with the mean in float32 (arXiv 1910.07467)."""
    return F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype) * weight


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up for gate_up = [gate | up] (..., 2I) -> (..., I) (arXiv 2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
