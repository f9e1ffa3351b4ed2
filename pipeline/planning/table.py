"""The plan as a person reads it."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.figures import percent


def rows(plan: Mapping[str, Any]) -> list[dict[str, str | float]]:
    """One for each candidate, the cheapest first. `plan` as plan.json has it."""
    return [
        {
            "release": one["release"],
            "served from": one["way"],
            "": "chosen" if one["chosen"] else "; ".join(one["misses"]),
            "pass@1": percent(one["pass_at_1"]["mean"]),
            "lost, points": points(one["loss"]),
            "memory, MiB": f"{one['memory']:,.0f}",
            "of it the model's": f"{one['model_memory']:,.0f}",
            "tokens/s, 16 clients": f"{one['speed']:,.0f}",
            "one client": f"{one['speed_alone']:,.0f}",
            "first token, ms": f"{1000 * one['first_token']:.0f}",
            "whole answer, s": f"{one['latency']:.2f}",
            f"{plan['currency']} per million tokens": f"{one['cost']:.4f}",
        }
        for one in plan["candidates"]
    ]


def points(interval: Mapping[str, float]) -> str:
    """A difference of shares and its interval, in points of a hundred."""
    mean, low, high = (f"{100 * interval[end]:+.1f}".replace("-", "−") for end in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def chosen_line(plan: Mapping[str, Any]) -> str:
    """How the release that was chosen is served."""
    chosen = plan["chosen"]
    if chosen is None:
        return "no release is chosen for this machine"
    hot = "" if chosen["hot"] is None else f" with machine.serving.hot: {chosen['hot']:g} in params.yaml"
    return f"chosen for this machine: {chosen['release']}, served from {chosen['way']}{hot}"


def plan_table(plan: Mapping[str, Any]) -> Table:
    """For a terminal."""
    known = rows(plan)
    table = Table()
    for name in known[0]:
        table.add_column(name, overflow="fold")
    for one, row in zip(plan["candidates"], known, strict=True):
        style = "bold green" if one["chosen"] else "dim" if one["misses"] else ""
        table.add_row(*(Text(str(cell), style=style) for cell in row.values()))
    return table
