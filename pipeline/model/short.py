"""Causal attention of many short sequences on a CPU, by batched products over the scores of whole sequences.

Different from the textbook: the scores L × L are formed, where flash attention takes care not to. For sequences up to
`LONGEST` tokens they are small, and flash attention's blocks are larger than the sequences: this is about twice as
fast there. Heads are gathered from the flat run straight to the order (sequence, head, token) that batched products
want; the gather's backward is the opposite gather, where autograd would add into zeros row by row.
Shapes: N tokens, P tokens with padding (`ragged.layout`), H query heads, G key and value heads, d and e widths.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model.ragged import Layout

LONGEST = 128


@dataclass(frozen=True)
class HeadRows:
    """Where the N · H rows of a tensor (N, H, d) go when its sequences are padded and its heads stand apart."""

    classes: tuple[tuple[int, int], ...]
    """(sequences · heads, length) of each length."""
    token: Tensor
    """The token that each padded row is a copy of, (P · H,) int64."""
    head: Tensor
    """Its query head, (P · H,) int64."""
    slots: Tensor
    """The padded row of each token and head, (N · H,) int64."""
    unpadded: Tensor
    """The row of (N · H) that each padded row is, or N · H for padding: (P · H,) int64."""


def head_rows(blocks: Layout, heads: int) -> HeadRows:
    """Spread a layout of tokens over heads."""
    parts = [count * length for count, length in blocks.classes]
    places = torch.arange(len(blocks.source)).split(parts)  # of padded rows before heads were set apart
    place = torch.cat(
        [
            part.view(shape)[:, None, :].expand(-1, heads, -1).flatten()
            for part, shape in zip(places, blocks.classes, strict=True)
        ]
    )
    head = torch.cat(
        [torch.arange(heads)[:, None].expand(count, -1, length).flatten() for count, length in blocks.classes]
    )
    token = blocks.source[place]
    row = token * heads + head
    is_real = blocks.slots[token] == place
    slots = torch.empty(len(blocks.slots) * heads, dtype=torch.int64)
    slots[row[is_real]] = is_real.nonzero().squeeze(1)
    classes = tuple((count * heads, length) for count, length in blocks.classes)
    return HeadRows(classes, token, head, slots, torch.where(is_real, row, len(slots)))


def short_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, rows: HeadRows) -> Tensor:
    """query (N, H, d), key (N, G, d), value (N, G, e) -> (N, H, e)."""
    heads = query.shape[1]
    parts = [count * length for count, length in rows.classes]
    padded = [_Pad.apply(part, rows, heads).split(parts) for part in (query, key, value)]
    attended = []
    for shape, *block in zip(rows.classes, *padded, strict=True):
        q, k, v = (part.unflatten(0, shape) for part in block)  # (S · H, L, d)
        later = torch.full((shape[1], shape[1]), -torch.inf, dtype=q.dtype).triu(1)
        scores = torch.baddbmm(later, q, k.transpose(1, 2), alpha=scale)
        attended.append(torch.bmm(scores.softmax(-1), v).flatten(0, 1))
    return _Unpad.apply(torch.cat(attended), rows).unflatten(0, (-1, heads))


class _Pad(torch.autograd.Function):
    """x (N, G, d) -> (P · H, d); each of the G heads serves H / G query heads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: HeadRows, heads: int) -> Tensor:
        ctx.rows, ctx.shape, ctx.shared = rows, x.shape, heads // x.shape[1]
        return x.reshape(-1, x.shape[2]).index_select(0, rows.token * x.shape[1] + rows.head // ctx.shared)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # No gradient of padding is lost: no real query sees a padded key, and padded queries get no gradient.
        real = gradient.index_select(0, ctx.rows.slots)
        return (real if ctx.shared == 1 else real.unflatten(0, (-1, ctx.shared)).sum(1)).view(ctx.shape), None, None


class _Unpad(torch.autograd.Function):
    """(P · H, e) -> (N · H, e)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: HeadRows) -> Tensor:
        ctx.rows = rows
        return x.index_select(0, rows.slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return F.pad(gradient, (0, 0, 0, 1)).index_select(0, ctx.rows.unpadded), None
