"""How many rows came in, how many were kept, and why the others were not."""

from collections import Counter
from dataclasses import dataclass, field

import polars as pl

from pipeline.data.quarantine import REASONS


@dataclass
class Funnel:
    """Counts of rows. Preference pairs are rows too: they count under the name `<source>/pairs`."""

    read: Counter[str] = field(default_factory=Counter)  # per source
    quarantined: Counter[str] = field(default_factory=Counter)  # per reason
    problems: Counter[tuple[str, str]] = field(default_factory=Counter)  # kept, per split and task
    pairs: int = 0  # kept
    traces: int = 0
    prompt_chars: int = 0
    thinking_chars: int = 0

    def add_quarantined(self, table: pl.DataFrame) -> None:
        self.quarantined.update(table["reason"])

    def add_problems(self, table: pl.DataFrame) -> None:
        self.problems.update(table.select("split", "task").iter_rows())
        self.prompt_chars += int(table["prompt"].str.len_chars().sum())

    def add_traces(self, table: pl.DataFrame) -> None:
        self.traces += table.height
        self.thinking_chars += int(table["thinking"].str.len_chars().sum())

    @property
    def kept(self) -> int:
        """Problems and pairs."""
        return self.problems.total() + self.pairs

    def check(self) -> None:
        """No row is lost, none is there twice."""
        assert self.read.total() == self.kept + self.quarantined.total(), self

    def metrics(self) -> dict[str, float]:
        """The figures by name, the totals first."""
        return {
            "problems": self.problems.total(),
            "traces": self.traces,
            "pairs": self.pairs,
            "quarantined": self.quarantined.total(),
            "mean_prompt_chars": round(self.prompt_chars / max(self.problems.total(), 1), 2),
            "mean_thinking_chars": round(self.thinking_chars / max(self.traces, 1), 2),
            **{f"read/{source}": count for source, count in self.read.items()},
            **{f"quarantined/{reason}": self.quarantined[reason] for reason in REASONS},
            **{f"{split}/{task}": count for (split, task), count in sorted(self.problems.items())},
        }
