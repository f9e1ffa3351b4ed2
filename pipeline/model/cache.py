"""The keys and values of the sequences that are being generated, and the attention of new tokens over them.

Shapes: S slots, L length, H query heads, G key and value heads, d and e widths, B decoding rows, T tokens of a run; in
latent attention C the latent's width, R the rotary one, d = n + R.
Different from the textbook: the sequences stand in the first rows of one tensor that is there from the start, so a step
reads slices of it and copies nothing; whoever owns the cache moves the last row into a gap. One run may hold both one
more token of each decoding row and whole prompts of new rows.
Latent attention keeps one latent and one rotary key per token, whatever the number of heads. A decoding token never
expands them: the up-projection of the keys is applied to its query, that of the values to what it attended to (the
absorption of DeepSeek-V2, arXiv 2405.04434, section 2.1.2). Prompts are computed expanded, which is cheaper for many
queries. Both are the same sum in another order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.model import native
from pipeline.model.attention import PackedSequences
from pipeline.model.config import ModelConfig
from pipeline.model.parts import LatentAttention

FEW = 16
"""Rows up to which copying one after the other takes less time than gathering and scattering them."""


def _planes(config: ModelConfig) -> tuple[int, int, int]:
    """Planes, G and width: keys and values, or the latent, which is key and value in one."""
    attention = config.attention
    if isinstance(attention, LatentAttention):
        return 1, 1, attention.kv_lora_rank + attention.qk_rope_head_dim
    return 2, attention.num_key_value_heads, attention.head_dim


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """What `SlotCache.begin` was told of the run: the place of every token, and how far each decoding row reaches."""

    places: Tensor
    lengths: Tensor
    longest: int
    prompts: PackedSequences | None


class SlotCache:
    """What S sequences of at most L tokens have been through, and an attention context that reads and extends it.

    positions = cache.begin(lengths, longest, prompts)  # what the next run holds
    output = decoder(tokens, positions, cache)
    """

    def __init__(
        self, config: ModelConfig, slots: int, max_length: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        planes, groups, width = _planes(config)
        shape = (config.num_hidden_layers, slots, groups, max_length, width)
        # Zeros, because a row's unwritten end is multiplied with the weight 0, and 0 · nan is nan.
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = None if planes == 1 else torch.zeros_like(self._keys)
        self._begun = _Run(torch.empty(0), torch.empty(0), 0, None)

    @staticmethod
    def slot_bytes(config: ModelConfig, max_length: int, dtype: torch.dtype) -> int:
        """What one slot takes."""
        planes, groups, width = _planes(config)
        return config.num_hidden_layers * planes * groups * max_length * width * dtype.itemsize

    @property
    def max_length(self) -> int:
        return self._keys.shape[3]

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes)

    @property
    def planes(self) -> tuple[Tensor, ...]:
        """Keys and values, or latents alone: each (layers, S, G, L, width)."""
        return (self._keys,) if self._values is None else (self._keys, self._values)

    def begin(self, lengths: Tensor, longest: int, prompts: Sequence[tuple[int, int]] = ()) -> Tensor:
        """Expect a run of one more token for each of the first B rows and, behind them, whole prompts of other rows.

        `lengths` (B,) int64 counts the tokens that the decoding rows hold; `longest` is the largest of them or above
        it, and bounds what is read; `prompts` are (row, length). Returns the positions (T,) of the run's tokens.
        """
        _, _, groups, capacity, _ = self._keys.shape
        device = self._keys.device
        assert longest < capacity, f"the cache of {capacity} tokens a row is full"
        rows, positions = torch.arange(len(lengths), device=device), lengths
        if prompts:
            row, new = torch.tensor(prompts).unbind(1)
            of_token = torch.arange(len(new)).repeat_interleave(new)
            position = torch.arange(len(of_token)) - (new.cumsum(0) - new)[of_token]
            rows, positions = torch.cat((rows, row[of_token].to(device))), torch.cat((positions, position.to(device)))
        places = rows * (groups * capacity) + positions
        if groups > 1:
            places = (places[:, None] + torch.arange(groups, device=device) * capacity).flatten()
        packed = PackedSequences([length for _, length in prompts]) if prompts else None
        self._begun = _Run(places, lengths + 1, longest + 1, packed)
        return positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        run, decoding = self._begun, len(self._begun.lengths)
        assert self._values is not None, "grouped attention over a cache of latents"
        _store(self._keys[layer], run.places, key)
        _store(self._values[layer], run.places, value)
        attended = []
        if decoding:
            keys, values = (plane[layer, :decoding, :, : run.longest] for plane in (self._keys, self._values))
            attended.append(grouped_attention(query[:decoding], keys, values, run.lengths, scale))
        if run.prompts is not None:
            attended.append(run.prompts.attend(layer, query[decoding:], key[decoding:], value[decoding:], scale))
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def attend_latent(
        self, layer: int, query: Tensor, latent: Tensor, rotary: Tensor, up: nn.Linear, scale: float
    ) -> Tensor:
        run, decoding = self._begun, len(self._begun.lengths)
        assert self._values is None, "latent attention over a cache of keys and values"
        _store(self._keys[layer], run.places, torch.cat((latent, rotary.squeeze(1)), dim=-1))
        attended = []
        if decoding:
            heads, width = query.shape[1], query.shape[2] - rotary.shape[2]
            up_key, up_value = up.weight.unflatten(0, (heads, -1)).tensor_split([width], dim=1)  # (H, n or e, C)
            plain, turned = query[:decoding].tensor_split([width], dim=-1)
            absorbed = torch.bmm(plain.transpose(0, 1), up_key).transpose(0, 1)  # (B, H, C)
            query_latent = torch.cat((absorbed, turned), dim=-1)
            cache = self._keys[layer, :decoding, 0, : run.longest]
            mixed = latent_attention(query_latent, cache, run.lengths, latent.shape[1], scale)
            attended.append(torch.bmm(mixed.transpose(0, 1), up_value.transpose(1, 2)).transpose(0, 1))
        if run.prompts is not None:
            new_query, new_latent, new_rotary = query[decoding:], latent[decoding:], rotary[decoding:]
            attended.append(run.prompts.attend_latent(layer, new_query, new_latent, new_rotary, up, scale))
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Make rows `targets` copies of rows `sources`, in their first `length` tokens; no row is both."""
        if len(targets) <= FEW:
            for plane in self.planes:
                for source, target in zip(sources, targets, strict=True):
                    plane[:, target, :, :length] = plane[:, source, :, :length]
            return
        device = self._keys.device
        from_rows, to_rows = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
        for plane in self.planes:
            plane[:, to_rows, :, :length] = plane[:, from_rows, :, :length]

    def read(self, row: int, length: int) -> tuple[Tensor, ...]:
        """A copy of a row's first `length` tokens, for `write`."""
        return tuple(plane[:, row, :, :length].clone() for plane in self.planes)

    def write(self, rows: slice, kept: tuple[Tensor, ...]) -> None:
        """Start each of `rows` with what `read` gave."""
        for plane, part in zip(self.planes, kept, strict=True):
            plane[:, rows, :, : part.shape[2]] = part[:, None]


def _store(plane: Tensor, places: Tensor, new: Tensor) -> None:
    """Write new (T, G, d) or (T, d) to the rows `places` of plane (S, G, L, d) as one run of rows of width d."""
    plane.view(-1, plane.shape[-1]).index_copy_(0, places, new.reshape(-1, plane.shape[-1]).to(plane.dtype))


def latent_attention(query: Tensor, cache: Tensor, lengths: Tensor, rank: int, scale: float) -> Tensor:
    """One query per row and head over the latents of its row.

    query (B, H, C + R) in latent space, cache (B, L, C + R), lengths (B,) int64 the latents that a row looks at, at
    least 1 -> (B, H, C), the latents mixed by their weights; rank = C.
    """
    keys = cache.unsqueeze(1)
    return grouped_attention(query, keys, keys[..., :rank], lengths, scale)


def grouped_attention(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """One query per row and head over keys and values that H / G heads share.

    query (B, H, d), keys (B, G, L, d), values (B, G, L, e), lengths (B,) -> (B, H, e).
    """
    if native.usable(query, keys, values) and keys.stride() == values.stride():
        assert not (torch.is_grad_enabled() and query.requires_grad), "the kernel has no backward pass"
        query, out = query.contiguous(), query.new_empty(*query.shape[:2], values.shape[3])
        widths = (query.shape[1], keys.shape[1], query.shape[2], values.shape[3])
        strides = keys.stride()[:3]
        cache = (native.strided(keys), native.strided(values))
        native.call("attention_over_cache", len(query), *widths, scale, *strides, lengths, query, *cache, out)
        return out
    return _attention_over_cache(query, keys, values, lengths, scale)


def _attention_over_cache(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """`grouped_attention` by torch's operators."""
    rows, groups, longest, _ = keys.shape
    shared = query.unflatten(1, (groups, -1)).flatten(0, 1)  # (B · G, H / G, d)
    keys, values = (part.flatten(0, 1).to(query.dtype) for part in (keys, values))  # (B · G, L, d and e)
    unseen = torch.arange(longest, device=query.device) >= lengths[:, None]
    mask = torch.zeros(unseen.shape, dtype=query.dtype, device=query.device).masked_fill_(unseen, -torch.inf)
    mask = mask.repeat_interleave(groups, dim=0)
    scores = torch.baddbmm(mask[:, None], shared, keys.transpose(1, 2), alpha=scale)
    out = torch.bmm(scores.softmax(-1, dtype=torch.float32).to(query.dtype), values)  # (B · G, H / G, e)
    return out.reshape(rows, query.shape[1], -1)
