"""What a person sees of a project: the table at the end of a run, and the one of `r1flow status`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil
from rich.table import Table

from pipeline.job import artifacts
from pipeline.state import State


@dataclass(frozen=True)
class Outcome:
    """How a stage came out of a run. `fresh`: its outputs were up to date or came out of DVC's cache; nothing ran."""

    stage: str
    state: Literal["ran", "fresh", "failed", "stopped", "not reached"]
    seconds: float = 0.0


_COLOURS = {"ran": "green", "fresh": "cyan", "stale": "yellow", "failed": "red", "stopped": "red", "not reached": "dim"}


def run_table(root: Path, outcomes: Sequence[Outcome]) -> Table:
    """Stage, state, time, key figure, where its outputs lie."""
    table = Table("stage", "state", "time", "key figure", "outputs")
    for outcome in outcomes:
        known = outcome.state in ("ran", "fresh")
        table.add_row(
            outcome.stage,
            _coloured(outcome.state),
            duration(outcome.seconds) if outcome.seconds else "",
            figures(root, outcome.stage, 1) if known else "",
            str(artifacts(root, outcome.stage).relative_to(root)) if known else "",
        )
    return table


def status_table(root: Path, fresh: dict[str, bool], states: dict[str, State | None]) -> Table:
    """Stage, fresh or stale, last attempt, its age, last figures."""
    table = Table("stage", "outputs", "last attempt", "age", "figures")
    for stage, is_fresh in fresh.items():
        state = states[stage]
        table.add_row(
            stage,
            _coloured("fresh" if is_fresh else "stale"),
            _attempt(state) if state else "",
            duration(_age(state)) if state else "",
            figures(root, stage, 3),
        )
    return table


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
        figure = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        shown.append(f"{name} {figure}{interval}")
    return "\n".join(shown[:count])


def duration(seconds: float) -> str:
    """Seconds as a person says them: `4.2 s`, `3 min 5 s`, `2 h 7 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _attempt(state: State) -> str:
    """How an attempt ended. One that says it runs, and whose process is gone, was killed."""
    if state.state != "running":
        return state.state
    try:
        born = psutil.Process(state.pid).create_time()
    except psutil.NoSuchProcess:
        return "killed"
    return "running" if born <= datetime.fromisoformat(state.started).timestamp() else "killed"  # else: a reused id


def _age(state: State) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(state.started)).total_seconds() - state.seconds


def _coloured(state: str) -> str:
    return f"[{_COLOURS[state]}]{state}[/]"
