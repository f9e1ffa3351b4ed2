"""Where a decoder's attention looks: inside each sequence of a packed run, or back into a cache of earlier tokens.

A decoder projects queries, keys and values and hands them to an `AttentionContext`, so that training, scoring and
generation are the same decoder under different contexts.
Shapes: T tokens of all sequences in a row, S sequences, L length, H query heads, G key and value heads, d and e widths.
Different from the textbook: sequences lie end to end without padding. For attention alone they are padded again, in
few calls of similar length; right padding needs no mask under a causal one, as no real query sees a later key.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model import native
from pipeline.model.config import ModelConfig
from pipeline.model.packed import packed_attention
from pipeline.model.parts import LatentAttention
from pipeline.model.ragged import Layout, layout
from pipeline.model.short import LONGEST, short_attention


class AttentionContext(Protocol):
    """Causal attention of one layer over whatever this context holds."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query (T, H, d), key (T, G, d), value (T, G, e) -> (T, H, e)."""
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


class KeyValueCache:
    """Keys and values of `batch` sequences of at most `max_length` tokens, for generation.

        cache = KeyValueCache(config, len(prompts), max_length, dtype, device)
        output = decoder(tokens, cache.prefill(prompt_lengths), cache)  # all prompts as one flat run
        output = decoder(next_tokens, cache.extend(live_rows), cache)  # then one token per live row per call

    Both calls return the positions of the tokens that come next.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        attention = config.attention
        if isinstance(attention, LatentAttention):
            heads = config.num_attention_heads
            widths = (attention.qk_nope_head_dim + attention.qk_rope_head_dim, attention.v_head_dim)
        else:
            heads, widths = attention.num_key_value_heads, (attention.head_dim, attention.head_dim)
        self._keys, self._values = (
            torch.zeros(config.num_hidden_layers, batch, max_length, heads, width, dtype=dtype, device=device)
            for width in widths
        )
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self._prompts: PackedSequences | None = None
        self._rows = self._positions = torch.empty(0, dtype=torch.int64, device=device)

    @property
    def max_length(self) -> int:
        return self._keys.shape[2]

    def prefill(self, lengths: Sequence[int]) -> Tensor:
        """Expect a flat run of one prompt per row next, (T,) with T = sum(lengths); returns its positions (T,)."""
        assert len(lengths) == len(self.lengths), f"{len(lengths)} prompts for {len(self.lengths)} rows"
        assert max(lengths) <= self.max_length, f"a prompt of {max(lengths)} tokens in a cache of {self.max_length}"
        self._prompts = PackedSequences(lengths)
        device = self.lengths.device
        self.lengths = torch.tensor(lengths, device=device)
        self._rows = torch.arange(len(lengths), device=device).repeat_interleave(self.lengths)
        self._positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        return self._positions

    def extend(self, rows: Tensor) -> Tensor:
        """Expect one more token for each of `rows` (n,) next, each row at most once; returns their positions (n,)."""
        self._prompts = None
        self._rows, self._positions = rows, self.lengths[rows]
        assert int(self._positions.max()) < self.max_length, f"the cache of {self.max_length} tokens a row is full"
        self.lengths = self.lengths.index_add(0, rows, torch.ones_like(rows))
        return self._positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self._keys[layer, self._rows, self._positions] = key.to(self._keys.dtype)
        self._values[layer, self._rows, self._positions] = value.to(self._values.dtype)
        if self._prompts is not None:
            return self._prompts.attend(layer, query, key, value, scale)
        longest = int(self._positions.max()) + 1
        keys = self._keys[layer, self._rows, :longest].to(query.dtype)  # (n, L, G, d)
        values = self._values[layer, self._rows, :longest].to(query.dtype)
        seen = torch.arange(longest, device=query.device) <= self._positions[:, None]  # (n, L)
        out = F.scaled_dot_product_attention(
            query.unsqueeze(2),  # (n, H, 1, d)
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=seen[:, None, None],
            scale=scale,
            enable_gqa=True,
        )
        return out.squeeze(2)
