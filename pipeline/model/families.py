"""Sequences of a packed run that begin alike, and so share what their beginning needs computed.

A run is made of S segments end to end, in families. Of a family of several segments the first, the trunk, is the
common beginning, and each of the others, the branches, goes on from its end: trunk and branch together are a text. A
family of one segment is a text by itself.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def texts(families: Sequence[int]) -> list[tuple[int, ...]]:
    """The segments, by number, that each text is made of; `families` says how many segments each family has."""
    starts = accumulate(families, initial=0)
    return [
        text
        for first, count in zip(starts, families, strict=False)
        for text in ([(first,)] if count == 1 else [(first, first + branch) for branch in range(1, count)])
    ]


def membership(families: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """A text and a segment, by number, for each time that a segment is part of a text: both (M,) int64."""
    pairs = [(number, segment) for number, text in enumerate(texts(families)) for segment in text]
    text, segment = torch.tensor(pairs, device=device).unbind(1)
    return text, segment
