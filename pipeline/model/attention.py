"""Where a decoder's attention looks: inside each sequence of a packed run, here, or back into a cache (`cache.py`).

A decoder projects queries, keys and values and hands them to an `AttentionContext`, so that training, scoring and
generation are the same decoder under different contexts.
Shapes: T tokens of all sequences in a row, S sequences, L length, H query heads, G key and value heads, d and e widths;
in latent attention C the latent's width, R the rotary one, and d = n + R.
Different from the textbook: sequences lie end to end without padding. Short ones on a CPU are attended as they lie
(`short.py`); else they are padded for attention alone (`packed.py`), in few calls of similar length.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.model import native
from pipeline.model.families import texts
from pipeline.model.packed import packed_attention
from pipeline.model.ragged import Layout, layout
from pipeline.model.short import LONGEST, Segments, short_attention, short_latent_attention


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
    """Causal attention inside each sequence of a flat run of T = sum(lengths) tokens; for training and scoring.

    With `families`, so many segments to each, `lengths` are those of the segments (`families.py`).
    """

    def __init__(self, lengths: Sequence[int], families: Sequence[int] | None = None) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths = {list(lengths)}: must name at least one sequence, each of at least one token")
        self.lengths = tuple(lengths)
        self.families = (1,) * len(lengths) if families is None else tuple(families)
        assert sum(self.families) == len(lengths), f"families of {sum(self.families)} in {len(lengths)} sequences"
        self._segments = Segments.of(self.lengths, self.families)
        self._longest = max(sum(self.lengths[part] for part in text) for text in texts(self.families))
        self._blocks: Layout | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        assert len(query) == sum(self.lengths), f"{len(query)} tokens for sequences of {sum(self.lengths)}"
        if self._longest <= LONGEST and native.usable(query, key, value):
            return short_attention(query, key, value, scale, self._segments)
        if len(self.families) < len(self.lengths):
            return self._attend_apart(layer, query, key, value, scale)
        if self._blocks is None:  # the same in every layer
            self._blocks = layout(torch.tensor(self.lengths)).to(query.device)
        return packed_attention(query, key, value, scale, self._blocks)

    def attend_latent(
        self, layer: int, query: Tensor, latent: Tensor, rotary: Tensor, up: nn.Linear, scale: float
    ) -> Tensor:
        heads, width = query.shape[1], query.shape[2] - rotary.shape[2]
        expanded = up(latent).unflatten(-1, (heads, -1))
        if self._longest <= LONGEST and native.usable(query, expanded, rotary):
            return short_latent_attention(query, expanded, rotary, scale, self._segments)
        key, value = expanded.tensor_split([width], dim=-1)
        key = torch.cat((key, rotary.expand(-1, heads, -1)), dim=-1)  # (T, H, d)
        return self.attend(layer, query, key, value, scale)

    def _attend_apart(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """With each trunk repeated before every one of its branches."""
        apart, source, own = self._apart
        source, own = source.to(query.device), own.to(query.device)
        query, key, value = (part.index_select(0, source) for part in (query, key, value))
        return apart.attend(layer, query, key, value, scale).index_select(0, own)

    @cached_property
    def _apart(self) -> tuple["PackedSequences", Tensor, Tensor]:
        """The texts one by one, the token that each of theirs is a copy of, and for each token one of its copies."""
        parts = torch.arange(sum(self.lengths)).split(self.lengths)
        whole = [torch.cat([parts[segment] for segment in text]) for text in texts(self.families)]
        source = torch.cat(whole)
        own = torch.empty(sum(self.lengths), dtype=torch.int64).scatter_(0, source, torch.arange(len(source)))
        return PackedSequences([len(text) for text in whole]), source, own
