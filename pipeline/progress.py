"""A progress bar with rate and time left, for whatever may take more than a few seconds."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from pipeline.process import rank

REPORT_SECONDS = 15.0  # between two lines where the output is no terminal


class Progress:
    """Counts `unit`s up to `total`. On a terminal it is a bar; in a log file it is a line now and then."""

    def __init__(self, title: str, *, total: int, unit: str, done: int = 0) -> None:
        """`done` are done already, by an earlier attempt: they do not count for the rate."""
        self._console = Console(stderr=True, quiet=rank() > 0)  # of several processes the first one shows it
        self._title, self._total, self._unit = title, total, unit
        self._done, self._before = done, done
        self._started = self._reported = time.monotonic()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, rate="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more are done; `note` stands beside the rate."""
        self._done += count
        now = time.monotonic()
        rate = (self._done - self._before) / max(now - self._started, 1e-9)
        text = f"{rate:,.1f} {self._unit}/s {note}".rstrip()
        self._bar.update(self._task, completed=self._done, rate=text)
        if not self._console.is_terminal and now - self._reported >= REPORT_SECONDS:
            self._reported = now
            left = (self._total - self._done) / max(rate, 1e-9)
            self._console.print(
                f"{self._title}: {self._done}/{self._total} · {text} · {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )
