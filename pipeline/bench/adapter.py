"""The adapter that a benchmark of training is asked for."""

from typing import Any

from pipeline.model.adapter import all_targets
from pipeline.model.decoder import Decoder


def adapter_options(model: Decoder, rank: int) -> dict[str, Any] | None:
    """As params have it: of `rank` on every matrix of the model; None for rank 0."""
    return {"rank": rank, "alpha": 2.0 * rank, "targets": all_targets(model)} if rank else None
