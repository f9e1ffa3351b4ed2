"""The memory plan as a person reads it."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from pipeline.figures import scaled
from pipeline.memory.plan import StagePlan
from pipeline.memory.step import PARTS

GIB = 2**30


def fits(plan: StagePlan, device_gib: float) -> bool:
    """Whether a stage's tensors find room. The device's own context and what is lost between them come on top."""
    return plan.peak.total <= device_gib * GIB


def memory_table(plans: Sequence[StagePlan], device_gib: float | None) -> Table:
    """One row for each training; figures are of the fullest moment, on one rank."""
    held = [part for part in PARTS if any(part in plan.peak.parts for plan in plans)]
    table = Table()
    for name in ("stage", "parameters", "tokens at once", "fullest in", "peak", *held, "host"):
        table.add_column(name, justify="left" if name in ("stage", "fullest in") else "right", overflow="fold")
    for plan in plans:
        cells = [
            plan.stage,
            scaled(plan.parameters),
            f"{plan.tokens:,}",
            plan.peak.moment,
            _size(plan.peak.total),
            *(_size(plan.peak.parts.get(part, 0.0)) for part in held),
            _size(plan.peak.host),
        ]
        style = "" if device_gib is None else "green" if fits(plan, device_gib) else "bold red"
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table


def _size(held: float) -> str:
    return scaled(held, "B", 1024) if held else ""
