"""A change of low rank to a matrix of weights, which itself stays as it is: W + scale · B · A (LoRA, arXiv 2106.09685).

Different from the textbook: gate and up projections, and all experts of a layer, are one matrix in memory here, so each
pair of them shares its A, as PEFT has it for experts.
Shapes: T tokens, D in, O out, r rank; of routed experts every matrix has E in front.
"""

import torch
from torch import Tensor, nn

from pipeline.model.linear import linear


class LowRank(nn.Module):
    """A drawn, B zero: it begins as no change."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Of a weight (…, O, D), on its device; scale = alpha / rank. A is uniform within ±1/√D, as PEFT draws it."""
        super().__init__()
        *experts, rows, columns = weight.shape
        drawn = torch.empty(*experts, rank, columns).uniform_(-(columns**-0.5), columns**-0.5, generator=generator)
        self.a = nn.Parameter(drawn.to(weight.device))
        self.b = nn.Parameter(torch.zeros(*experts, rows, rank, device=weight.device))
        self.scale = alpha / rank

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """base (T, O) + scale · B · A · x, for x (T, D) and a weight without experts."""
        return linear(linear(x, self.a), self.b * self.scale, residual=base)

    def added_to(self, weight: Tensor) -> Tensor:
        """weight (…, O, D) + scale · B · A, a new tensor of its dtype."""
        add = torch.baddbmm if weight.ndim == 3 else torch.addmm
        with torch.autocast(weight.device.type, enabled=False):  # a sum of rounded terms would lose small changes
            return add(weight.to(self.a.dtype), self.b, self.a, alpha=self.scale).to(weight.dtype)
