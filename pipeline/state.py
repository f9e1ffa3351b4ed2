"""runs/<stage>/state.json: what a stage is doing, or how its last attempt ended.

Written by the stage's own process, read by the flow and by `r1flow status`. DVC replaces a stage's exit status by its
own, so this file is also how the flow learns why a stage stopped.
"""

import json
import os
import traceback
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import psutil

from pipeline.errors import EXPECTED, exit_code
from pipeline.files import write_json


@dataclass(frozen=True)
class State:
    """One attempt at a stage."""

    state: Literal["running", "finished", "failed", "stopped"]  # "running" and no such process: it was killed
    pid: int
    started: str  # ISO 8601, UTC, to the microsecond: no two attempts share it
    seconds: float = 0.0
    exit_code: int | None = None
    error: str = ""  # what ended the attempt, as one message
    key: str = ""  # pipeline.job.Identity.key; the attempt's scratch folder
    mlflow_run: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)  # pipeline.cost.Cost.figures: of this work, all attempts at it


class Attempt:
    """Keeps a stage's state file true while its block runs."""

    def __init__(self, root: Path, stage: str) -> None:
        self._path = state_file(root, stage)
        self._state = State("running", os.getpid(), datetime.now(UTC).isoformat(timespec="microseconds"))

    def update(self, **values: Any) -> None:
        """Set fields of the state and write it."""
        self._state = replace(self._state, **values)
        write_json(self._path, asdict(self._state))

    def __enter__(self) -> "Attempt":
        self.update()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        took = datetime.now(UTC) - datetime.fromisoformat(self._state.started)
        state = "finished" if error is None else "stopped" if isinstance(error, SystemExit) else "failed"
        self.update(
            state=state, seconds=round(took.total_seconds(), 3), exit_code=exit_code(error), error=_message(error)
        )


def amend(root: Path, stage: str, **values: Any) -> None:
    """Correct fields of the last attempt's state, where another process than its own knows better how it ended."""
    last = read_state(root, stage)
    if last is not None:
        write_json(state_file(root, stage), asdict(replace(last, **values)))


def _message(error: BaseException | None) -> str:
    match error:
        case None:
            return ""
        case SystemExit():
            return "stopped by a signal"
        case _ if isinstance(error, EXPECTED):
            return str(error)
        case _:
            return "".join(traceback.format_exception_only(error)).strip()


def state_file(root: Path, stage: str) -> Path:
    """Where the last attempt at a stage is told of."""
    return root / "runs" / stage / "state.json"


def read_state(root: Path, stage: str) -> State | None:
    """The last attempt at a stage, or None where there was none."""
    path = state_file(root, stage)
    return State(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def ending(state: State) -> str:
    """How an attempt ended: a `State.state`, or "killed" where it says that it runs and its process is gone."""
    if state.state != "running":
        return state.state
    try:
        born = psutil.Process(state.pid).create_time()
    except psutil.NoSuchProcess:
        return "killed"
    return "running" if born <= datetime.fromisoformat(state.started).timestamp() else "killed"  # else: a reused id
