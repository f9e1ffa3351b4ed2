"""Where a decoder's attention looks: inside each sequence of a packed run, here, or back into a cache (`cache.py`).

A decoder projects queries, keys and values and hands them to an `AttentionContext`, so that training, scoring and
generation are the same decoder under different contexts.
Shapes: T tokens of all sequences in a row, S sequences, L length, H query heads, G key and value heads, d and e widths;
in latent attention C the latent's width, R the rotary one, and d = n + R.
Different from the textbook: sequences lie end to end without padding. For attention alone they are padded again, in
few calls of similar length; right padding needs no mask under a causal one, as no real query sees a later key.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.model.packed import packed_attention
from pipeline.model.ragged import layout
from pipeline.model.short import LONGEST, HeadRows, head_rows, short_attention


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
        self._blocks = layout(torch.tensor(lengths))
        self._rows: HeadRows | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        assert len(query) == sum(self.lengths), f"{len(query)} tokens for sequences of {sum(self.lengths)}"
        if query.device.type == "cpu" and max(self.lengths) <= LONGEST:
            self._rows = self._rows or head_rows(self._blocks, query.shape[1])  # the same in every layer
            return short_attention(query, key, value, scale, self._rows)
        if self._blocks.source.device != query.device:
            self._blocks = self._blocks.to(query.device)
        return packed_attention(query, key, value, scale, self._blocks)

    def attend_latent(
        self, layer: int, query: Tensor, latent: Tensor, rotary: Tensor, up: nn.Linear, scale: float
    ) -> Tensor:
        heads, width = query.shape[1], query.shape[2] - rotary.shape[2]
        key, value = up(latent).unflatten(-1, (heads, -1)).tensor_split([width], dim=-1)
        key = torch.cat((key, rotary.expand(-1, heads, -1)), dim=-1)  # (T, H, d)
        return self.attend(layer, query, key, value, scale)
