"""Where a decoder's attention looks: inside each sequence of a packed run, here, or back into a cache (`cache.py`).

A decoder projects queries, keys and values and hands them to an `AttentionContext`, so that training, scoring and
generation are the same decoder under different contexts.
Shapes: T tokens of all sequences in a row, S sequences, L length, H query heads, G key and value heads, d and e widths;
in latent attention C the latent's width, R the rotary one, and d = n + R.
Different from the textbook: sequences lie end to end without padding. Short ones on a CPU are attended as they lie
(`short.py`); else they are padded for attention alone (`packed.py`), in few calls of similar length.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model import native
from pipeline.model.packed import packed_attention
from pipeline.model.ragged import Layout, layout
from pipeline.model.short import LONGEST, short_attention, short_latent_attention


class AttentionContext(Protocol):
    """Causal attention of one layer over whatever this context holds."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query (T, H, d), key (T, G, d), value (T, G, e) -> (T, H, e)."""
        ...

    def attend_latent(
        self, layer: int, query: Tensor, latent: Tensor, rotary: Tensor, up: nn.Linear, scale: float
    ) -> Tensor:
        """The same for keys and values that `up` makes of one latent per token.

        query (T, H, n + R), latent (T, C), rotary (T, 1, R), the key's part that all heads share; `up` maps C to
        H · (n + e), each head's key before its value. -> (T, H, e)
        """
        ...


class PackedSequences:
    """Causal attention inside each sequence of a flat run of T = sum(lengths) tokens; for training and scoring."""

    def __init__(self, lengths: Sequence[int]) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths = {list(lengths)}: must name at least one sequence, each of at least one token")
        self.lengths = tuple(lengths)
        self._begins = F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
        self._blocks: Layout | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        assert len(query) == sum(self.lengths), f"{len(query)} tokens for sequences of {sum(self.lengths)}"
        if max(self.lengths) <= LONGEST and native.usable(query, key, value):
            return short_attention(query, key, value, scale, self._begins)
        if self._blocks is None:  # the same in every layer
            self._blocks = layout(torch.tensor(self.lengths)).to(query.device)
        return packed_attention(query, key, value, scale, self._blocks)

    def attend_latent(
        self, layer: int, query: Tensor, latent: Tensor, rotary: Tensor, up: nn.Linear, scale: float
    ) -> Tensor:
        heads, width = query.shape[1], query.shape[2] - rotary.shape[2]
        expanded = up(latent).unflatten(-1, (heads, -1))
        if max(self.lengths) <= LONGEST and native.usable(query, expanded, rotary):
            return short_latent_attention(query, expanded, rotary, scale, self._begins)
        key, value = expanded.tensor_split([width], dim=-1)
        key = torch.cat((key, rotary.expand(-1, heads, -1)), dim=-1)  # (T, H, d)
        return self.attend(layer, query, key, value, scale)
