"""Causal attention inside each sequence of a packed run.

Different from the textbook: sequences lie end to end; for attention alone they are padded to few lengths
(`ragged.layout`). Padding stands on the right, so under the causal mask no token ever sees it and it needs no mask of
its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.ragged import Layout


def packed_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: Layout) -> Tensor:
    """query (T, H, d), key (T, G, d), value (T, G, e) -> (T, H, e), by scaled_dot_product_attention."""
    width = value.shape[-1]
    # The fused kernels want one width for all three; zeros change nothing but the padded columns.
    value = F.pad(value, (0, key.shape[-1] - width)) if width < key.shape[-1] else value
    parts = [count * length for count, length in blocks.classes]
    padded = [_rows(part, blocks.source).split(parts) for part in (query, key, value)]
    attended = []
    for shape, *block in zip(blocks.classes, *padded, strict=True):
        q, k, v = (part.unflatten(0, shape).transpose(1, 2) for part in block)  # (S, H, L, d)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return _rows(torch.cat(attended), blocks.slots)[..., :width]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x (N, H, d) -> x[index]; over flat rows, as index_select is several times slower over any other layout."""
    return x.flatten(1).index_select(0, index).unflatten(1, x.shape[1:])
