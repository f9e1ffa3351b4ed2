"""Groups of unequal sizes laid out for batched products: experts with their tokens, sequences with theirs.

A group is padded to the next rung of a ladder of heights, groups of one height stand together, and one batched product
serves each height. The ladder has four rungs per doubling, so a quarter of a group at most is padding, and the
heights are few however many the groups. Rows of padding repeat the last row of their group: finite wherever the group
is, and read by nobody.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RUNGS = 4
SMALLEST = 8


@dataclass(frozen=True)
class Layout:
    """Where N rows, lying group after group, go when their G groups are padded to few heights; P rows with padding."""

    order: Tensor
    """The groups with rows by descending height, int64."""
    empty: Tensor
    """The groups without rows, int64."""
    classes: tuple[tuple[int, int], ...]
    """(groups, height) in this order: P is the sum of their products."""
    source: Tensor
    """The row that each padded row is a copy of, (P,) int64."""
    slots: Tensor
    """The padded row of each row, (N,) int64: x[source][slots] is x."""

    def to(self, device: torch.device) -> "Layout":
        order, empty, source, slots = (part.to(device) for part in (self.order, self.empty, self.source, self.slots))
        return Layout(order, empty, self.classes, source, slots)


def layout(sizes: Tensor) -> Layout:
    """Lay out groups of `sizes` (G,) int64, zero allowed; reads the sizes back to the host once."""
    heights = rungs(sizes)
    used = int(sizes.count_nonzero())
    order, empty = heights.argsort(descending=True, stable=True).tensor_split([used])
    sizes_in_order, heights_in_order = sizes[order], heights[order]
    first_row = (sizes.cumsum(0) - sizes)[order]
    first_slot = heights_in_order.cumsum(0) - heights_in_order

    group = torch.arange(len(order), device=sizes.device).repeat_interleave(heights_in_order)
    within = torch.arange(len(group), device=sizes.device) - first_slot[group]
    source = first_row[group] + within.minimum(sizes_in_order[group] - 1)

    is_real = within < sizes_in_order[group]
    slots = torch.empty(int(is_real.sum()), dtype=torch.int64, device=sizes.device)
    slots[source[is_real]] = is_real.nonzero().squeeze(1)
    height, count = heights_in_order.unique_consecutive(return_counts=True)
    return Layout(order, empty, tuple(zip(count.tolist(), height.tolist(), strict=True)), source, slots)


def rungs(sizes: Tensor) -> Tensor:
    """The smallest height of the ladder that holds each size, 0 for an empty group; int64 like `sizes`."""
    doubling = torch.frexp((sizes - 1).clamp_min(1).double()).exponent.long() - 1  # floor(log2(size - 1))
    step = (1 << doubling).clamp_min(SMALLEST) // RUNGS
    return torch.where(sizes > 0, ((sizes + step - 1) // step * step).clamp_min(SMALLEST), 0)
