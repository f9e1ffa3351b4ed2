"""The figures of a stage's steps as a file that is a function of its inputs: `artifacts/<stage>/curves.csv`.

A stage whose outputs in dvc.yaml have such a file gets one, of whatever it logs. Times and rates are left out; by our
convention their names end in `_s`. Each step's figures are appended to a file in the stage's scratch folder at once, so
a killed run has lost none; the run that goes on from a checkpoint notes the steps after it again, in the same words,
as it computes the same bits. Checkpoints flush that file to the disk before they are written
(pipeline/training/checkpoints.py), so the figures before a checkpoint are there even after a power cut.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.files import atomic_file

CURVES = "curves.csv"
NOTES = "curves.jsonl"


class Curves:
    """The figures that one piece of work has logged, in `folder`, its scratch folder."""

    def __init__(self, folder: Path) -> None:
        self._notes = folder / NOTES
        self._notes.parent.mkdir(parents=True, exist_ok=True)
        with self._notes.open("a+b") as file:  # a line that a killed writer left unfinished goes
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)

    def note(self, figures: Mapping[str, float], step: int) -> None:
        """Keep the figures of a step but times and rates. Noted again, the newer ones count."""
        kept = {
            name: value if isinstance(value, int) else float(value)
            for name, value in figures.items()
            if not name.endswith("_s")
        }
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, kept]) + "\n")

    def write(self, path: Path) -> None:
        """Write the table: a row for each step in order, a column for each figure by name; `nan` where a step has
        none, which pictures leave out (an empty field they draw as 0).

        Where nothing was noted, as of a base that is taken and not trained, it is a header alone.
        """
        steps: dict[int, dict[str, float]] = {}
        for line in self._notes.read_text(encoding="utf-8").splitlines():
            step, figures = json.loads(line)
            steps.setdefault(step, {}).update(figures)
        names = sorted({name for figures in steps.values() for name in figures})
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, ["step", *names], restval="nan", lineterminator="\n")
            table.writeheader()
            table.writerows({"step": step, **steps[step]} for step in sorted(steps))
