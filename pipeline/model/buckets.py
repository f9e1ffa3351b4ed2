"""Groups of unequal sizes, padded to few heights, so that one batched product serves many groups.

A size is rounded up to the next rung of a ladder with `RUNGS` rungs per doubling: at most 1/RUNGS of a group is
padding, half of that on average, and groups of nearly equal size share one height.
"""

from collections.abc import Sequence
from dataclasses import dataclass

RUNGS = 4
SMALLEST = 8


@dataclass(frozen=True)
class Bucket:
    """Groups that share one height: `members` are their indices."""

    height: int
    members: tuple[int, ...]


def rung(size: int) -> int:
    """The smallest height of the ladder that holds `size` rows."""
    if size <= SMALLEST:
        return SMALLEST
    step = max(1 << (size - 1).bit_length() - 1, SMALLEST) // RUNGS
    return -(-size // step) * step


def buckets(sizes: Sequence[int]) -> tuple[Bucket, ...]:
    """Group the indices of all non-empty `sizes` by their rung, highest first, indices ascending within one."""
    members: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        if size:
            members.setdefault(rung(size), []).append(index)
    return tuple(Bucket(height, tuple(members[height])) for height in sorted(members, reverse=True))
