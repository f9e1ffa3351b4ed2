"""The note on a day's data: how much of it is new, and how far lengths and tasks have moved."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.data.measures import Accepted, measure_drift, measure_tasks, read_accepted, summary, task_mixes
from pipeline.files import listing_digest, write_json
from pipeline.incoming.history import History
from pipeline.job import artifacts
from pipeline.records import Problem, read_table

FOLDER = "incoming"  # under runs/


@dataclass(frozen=True, slots=True)
class Note:
    """What was accepted today."""

    problems: int
    new: int  # of them, that the last recipe was not started on
    digest: str  # of the problems' ids: equal for equal sets
    mean_prompt_chars: float
    last_mean_prompt_chars: float | None  # None: no set was accepted before
    drift: dict[str, float]  # pipeline.data.measures.measure_drift; empty likewise
    tasks: list[dict[str, Any]]  # task, share, last_share (likewise None)


def accepted_problems(root: Path) -> pl.DataFrame:
    return read_table(artifacts(root, "curation") / "problems.parquet", Problem)


def compare(root: Path, history: History) -> Note:
    """The project's curated set against what was accepted before; it then takes that place itself."""
    problems = accepted_problems(root)
    current = summary(problems, measure_tasks(problems))
    file = root / "runs" / FOLDER / "accepted.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    last = read_accepted(file) if history.accepted(file) else None
    note = Note(
        problems=problems.height,
        new=len(set(problems["id"].to_list()) - history.begun()),
        digest=listing_digest((identity, "") for identity in problems["id"].sort().to_list()),
        mean_prompt_chars=current.mean_prompt_chars,
        last_mean_prompt_chars=None if last is None else last.mean_prompt_chars,
        drift={} if last is None else measure_drift(current, last).row(0, named=True),
        tasks=_tasks(current, last),
    )
    write_json(file, asdict(current))
    history.accept(file)
    return note


def _tasks(current: Accepted, last: Accepted | None) -> list[dict[str, Any]]:
    if last is None:
        return [{"task": task, "share": share, "last_share": None} for task, share in current.task_shares.items()]
    return task_mixes(current, last).to_dicts()
