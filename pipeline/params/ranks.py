"""How many processes train one model, and what they split among them."""

from typing import Literal

from pydantic import model_validator

from pipeline.params.section import Count, Section


class Distributed(Section):
    """One process with plain torch, or ranks under torchrun with DeepSpeed's ZeRO (arXiv 1910.02054)."""

    ranks: Count = 1  # processes on each node: one for each of its GPUs
    nodes: Count = 1
    zero: Literal[0, 1, 2, 3] = 0  # split: nothing, the optimiser's state, gradients too, weights too
    offload: Literal["none", "optimizer", "all"] = "none"  # what waits in the host's memory

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.ranks * self.nodes

    @model_validator(mode="after")
    def _something_is_split(self) -> "Distributed":
        if self.world == 1 and (self.zero, self.offload) != (0, "none"):
            raise ValueError("zero and offload need more than one rank: one process trains with plain torch")
        if self.offload == "optimizer" and self.zero == 0:
            raise ValueError("offload: optimizer needs zero of at least 1")
        if self.offload == "all" and self.zero != 3:
            raise ValueError("offload: all needs zero: 3, as it moves the weights out too")
        return self
