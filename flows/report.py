"""What a person sees of a project: the table at the end of a run, and the one of `r1flow status`."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.table import Table

from pipeline.cost import read_cost
from pipeline.figures import duration, money, number
from pipeline.job import artifacts
from pipeline.state import State, ending


@dataclass(frozen=True)
class Outcome:
    """How a stage came out of a run. `fresh`: its outputs were up to date or came out of DVC's cache; nothing ran."""

    stage: str
    state: Literal["ran", "fresh", "failed", "stopped", "not reached"]
    seconds: float = 0.0


WIDE = 110
"""Characters of a terminal that has room for everything."""

_COLOURS = {"ran": "green", "fresh": "cyan", "stale": "yellow", "failed": "red", "stopped": "red", "not reached": "dim"}


def run_table(root: Path, outcomes: Sequence[Outcome]) -> Table:
    """Stage, state, time, what its work has cost, key figure, where its outputs lie."""
    rows = table("stage", "state", "time", "cost", "key figure", "outputs", broken=("key figure", "outputs"))
    for outcome in outcomes:
        known = outcome.state in ("ran", "fresh")
        rows.add_row(
            outcome.stage,
            _coloured(outcome.state),
            duration(outcome.seconds) if outcome.seconds else "",
            _cost(root, outcome.stage),
            figures(root, outcome.stage, 1) if known else "",
            _outputs(root, outcome.stage) if known else "",
        )
    return rows


def status_table(root: Path, fresh: dict[str, bool], states: dict[str, State | None], width: int) -> Table:
    """Stage, fresh or stale, last attempt, its age, its time and what it has cost, last figures.

    A terminal of less than WIDE characters shows no time and no cost.
    """
    spent = ("time", "cost") if width >= WIDE else ()
    rows = table("stage", "outputs", "last attempt", "age", *spent, "figures", broken=("figures",))
    for stage, is_fresh in fresh.items():
        state = states[stage]
        time = duration(state.seconds) if state and state.seconds else ""
        rows.add_row(
            stage,
            _coloured("fresh" if is_fresh else "stale"),
            ending(state) if state else "",
            duration(_age(state)) if state else "",
            *((time, _cost(root, stage)) if spent else ()),
            figures(root, stage, 3),
        )
    return rows


def figures(root: Path, stage: str, count: int) -> str:
    """The first `count` figures of a stage's metrics.json, with the interval where one is given (`…_low`, `…_high`)."""
    path = artifacts(root, stage) / "metrics.json"
    if not path.is_file():
        return ""
    metrics: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    shown = []
    for name, value in metrics.items():
        if name.endswith(("_low", "_high")):
            continue
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
        shown.append(f"{name} {number(value)}{interval}")
    return "\n".join(shown[:count])


def table(*columns: str, broken: Collection[str]) -> Table:
    """On a narrow terminal the columns `broken` are broken into lines, and nothing else."""
    made = Table()
    for column in columns:
        made.add_column(column, no_wrap=column not in broken, overflow="fold")
    return made


def _outputs(root: Path, stage: str) -> str:
    """Their folder; none for what writes elsewhere than to artifacts/."""
    folder = artifacts(root, stage)
    return str(folder.relative_to(root)) if folder.is_dir() else ""


def _cost(root: Path, stage: str) -> str:
    cost = read_cost(root, stage)
    return "" if cost is None else money(cost.money, cost.currency)


def _age(state: State) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(state.started)).total_seconds() - state.seconds


def _coloured(state: str) -> str:
    return f"[{_COLOURS[state]}]{state}[/]"
