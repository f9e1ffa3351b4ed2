"""A corpus made of curation's own problems and traces: for a base that is pre-trained on one's own data.

Different from laying the same texts end to end in every epoch: a problem that comes back is now terse, now worked, in
the shares that params ask for. So even few problems are seen in both ways, none is seen in one of them alone, and the
model does not learn by heart which of them have work.
"""

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from pipeline import chat
from pipeline.errors import InputError
from pipeline.params import CuratedCorpus
from pipeline.records import Problem, Trace, read_table

ReadCurated = Callable[[], tuple[pl.DataFrame, pl.DataFrame]]
"""Reads curation's problems and traces. Called only where they are needed: other corpora do without curation."""


def read_curated(problems: Path, traces: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Curation's two tables."""
    return read_table(problems, Problem), read_table(traces, Trace)


def curated_documents(corpus: CuratedCorpus, problems: pl.DataFrame, traces: pl.DataFrame, seed: int) -> Iterator[str]:
    """Yield `corpus.documents` conversations of one turn, going round the problems of the train split.

    Of any n passes over a problem that has traces, n·`worked` show its work, rounded up or down; traces take turns. A
    problem without a trace is always terse. Raises InputError where the train split is empty.
    """
    asked = problems.filter(pl.col("split") == "train")
    if asked.is_empty():
        raise InputError("base.corpus: curated: the curated data has no problem in its train split")
    thinkings: dict[str, list[str]] = {}
    for problem, thinking in traces.select("problem_id", "thinking").iter_rows():
        thinkings.setdefault(problem, []).append(thinking)
    rows = asked.select("id", "prompt", "gold").rows()
    rng = random.Random(f"corpus/curated/{seed}")
    starts = [rng.random() for _ in rows]  # or all problems would be worked in the same pass
    for number in range(corpus.documents):
        turn, place = divmod(number, len(rows))
        problem, prompt, gold = rows[place]
        before = math.floor(turn * corpus.worked + starts[place])
        works = thinkings.get(problem, [])
        worked = math.floor((turn + 1) * corpus.worked + starts[place]) > before and works
        thinking = works[before % len(works)] if worked else ""
        yield chat.render_prompt(prompt) + chat.render_completion(thinking, gold)
