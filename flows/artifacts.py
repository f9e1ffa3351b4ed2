"""What a person reads of a run on Prefect's pages: tables, notes and a bar that moves. Nothing depends on them.

An artifact has a key, under which the server keeps its versions beside each other. Where no server is named
(PREFECT_API_URL) there is nobody to read them, and none is written. What cannot be written is said and does no harm.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.report import Outcome
from pipeline.figures import duration, number, percent
from pipeline.job import artifacts as outputs_folder

Row = Mapping[str, Any]


def on_server() -> bool:
    return "PREFECT_API_URL" in os.environ


def key(*parts: str) -> str:
    """A key as Prefect takes it: small letters, digits and dashes."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts)


def stages(outcomes: Iterable[Outcome]) -> None:
    """How every stage of a run came out."""
    rows = [
        {"stage": one.stage, "state": one.state, "time": duration(one.seconds) if one.seconds else ""}
        for one in outcomes
    ]
    _table("recipe", rows, "Stages, and how they came out.")


def stage(root: Path, outcome: Outcome) -> None:
    """The figures of one stage that has come to its end."""
    file = outputs_folder(root, outcome.stage) / "metrics.json"
    metrics: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rows = [{"figure": name, "value": number(value)} for name, value in metrics.items()]
    how = "was up to date" if outcome.state == "fresh" else f"ran {duration(outcome.seconds)}"
    _table(key("figures", outcome.stage), rows, f"Figures of the stage {outcome.stage}, which {how}.")


def data(found: Mapping[str, Any]) -> None:
    """The day's data (pipeline.incoming.note.Note): how much is new, how far lengths and tasks have moved."""
    last, drift = found["last_mean_prompt_chars"], found["drift"]
    lines = [
        "# Curated data",
        f"{found['problems']:,} problems passed the gates; {found['new']:,} of them no recipe was started on yet.",
        "",
        f"Mean prompt: {found['mean_prompt_chars']:.1f} characters"
        + ("." if last is None else f"; the last accepted set's: {last:.1f} (drift {percent(drift['length_drift'])})."),
        "",
        "No set was accepted before this one."
        if last is None
        else f"Task mix: distance {percent(drift['task_drift'])} from the last accepted set's.",
        "",
        "| task | share | before |",
        "|---|---|---|",
        *(f"| {row['task']} | {percent(row['share'])} | {_share(row['last_share'])} |" for row in found["tasks"]),
    ]
    note("data", "\n".join(lines), "What curation found in the sources, and how far it has drifted.")


def standing(figures: Mapping[str, float], model: str) -> None:
    """The champion tonight (pipeline.promotion.standing.Standing.figures)."""
    held = figures["pass_at_1"] >= figures["floor"] - 1e-9
    row = {
        "model": model,
        "version": int(figures["version"]),
        "pass@1": percent(figures["pass_at_1"]),
        "95 % interval": f"{percent(figures['pass_at_1_low'])} to {percent(figures['pass_at_1_high'])}",
        "at its registration": percent(figures["registered"]),
        "floor": percent(figures["floor"]),
        "problems": int(figures["problems"]),
        "verdict": "holds" if held else "below its floor",
    }
    _table("champion", [row], "The champion on held-out problems, against its own past.")


def note(name: str, text: str, description: str) -> None:
    """A page of Markdown."""
    _harmless(lambda: create_markdown_artifact(key=name, markdown=text, description=description))


class Progress:
    """A bar on the run's page: how much of it is done."""

    def __init__(self, description: str) -> None:
        self._id: UUID | None = None
        _harmless(lambda: self._create(description))

    def show(self, done: int, of: int) -> None:
        identity = self._id
        if identity is not None:
            _harmless(lambda: update_progress_artifact(identity, progress=100.0 * done / max(1, of)))

    def _create(self, description: str) -> None:
        made = create_progress_artifact(progress=0.0, key="progress", description=description)
        assert isinstance(made, UUID)
        self._id = made


def _share(share: float | None) -> str:
    return "" if share is None else percent(share)


def _table(name: str, rows: Sequence[Row], description: str) -> None:
    _harmless(lambda: create_table_artifact(key=name, table=[dict(row) for row in rows], description=description))


def _harmless(write: Callable[[], object]) -> None:
    if on_server():
        try:
            write()
        except Exception as error:  # whatever it is, it must not fail the run
            print(f"no artifact: {json.dumps(str(error))}", flush=True)
