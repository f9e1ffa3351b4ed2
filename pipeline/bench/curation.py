"""How fast curation is: a jsonl file of word problems, mixed like real data, goes through all of it, gates included.

Making the file is not timed. Of its rows about 5 % are exact duplicates (spelled with other blanks and capitals), 5 %
near duplicates (a name changed), 1 % broken; the others are sentences put together from a small vocabulary and numbers.
"""

import json
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from pipeline.data.curate import curate
from pipeline.data.gates import check
from pipeline.data.measures import TABLES
from pipeline.params import Curation, FieldMap, FileSource

SEED = 0
HELD_OUT = 0.01
REMEMBERED = 1_000  # rows that a duplicate may be of

_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Leo", "Mia", "Noor", "Omar")
_PLACES = ("market", "school", "library", "harbour", "garden", "bakery", "museum", "station", "farm", "workshop")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "maps", "nuts", "pens", "shells", "stamps", "tiles", "ropes")
_VERBS = ("buys", "finds", "sells", "loses", "packs", "borrows", "returns", "paints", "counts", "carries")
_TIMES = ("in the morning", "after lunch", "on Monday", "before the rain", "every week", "during the holidays")
_ENDS = (
    "How many {thing} are left at the end of the day?",
    "What is the total number of {thing}?",
    "How much does each of the friends get if they share them equally?",
    "How many more {thing} are needed to fill the last box?",
)
_BROKEN = (
    '{"question": "Ann has',
    '{"question": 5, "answer": "#### 5"}',
    '{"question": "Ann has 5. How many?"}',
    "[1, 2]",
)


def run(rows: int) -> dict[str, float]:
    """Curate `rows` rows and measure."""
    with TemporaryDirectory() as name:
        root = Path(name)
        _write(root / "rows.jsonl", rows)
        source = FileSource(
            kind="jsonl",
            name="rows",
            task="story",
            verifier="numeric",
            path="rows.jsonl",
            fields=FieldMap(prompt="question", gold="answer", answer_pattern="\n#### (.+)$"),
        )
        options = Curation(sources=[source])
        started = time.perf_counter()
        funnel = curate(options, seed=SEED, held_out=HELD_OUT, root=root, folder=root)
        curated = time.perf_counter()
        tables = {name: pl.read_parquet(root / f"{name}.parquet") for name in TABLES}
        check(tables, options, None, root / "docs")
        seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 2),
        "gates_s": round(seconds - (curated - started), 2),
        "rows": rows,
        "rows_per_s": round(rows / seconds),
        "kept": funnel.kept,
        "quarantined": funnel.quarantined.total(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _write(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in _lines(rows))


def _lines(rows: int) -> Iterator[str]:
    rng = random.Random(SEED)
    remembered: list[tuple[str, str, str]] = []
    for _ in range(rows):
        kind = rng.random()
        if kind < 0.01:
            yield rng.choice(_BROKEN)
            continue
        if kind < 0.11 and remembered:
            name, prompt, answer = rng.choice(remembered)
            prompt = f" {prompt.upper()}  " if kind < 0.06 else prompt.replace(name, f"{name}a", 1)
        else:
            name, prompt, answer = _problem(rng)
            remembered.append((name, prompt, answer))
            if len(remembered) > REMEMBERED:
                remembered.pop(0)
        yield json.dumps({"question": prompt, "answer": answer})


def _problem(rng: random.Random) -> tuple[str, str, str]:
    """The name of who acts, the question, and the answer with its work."""
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    sentences, work, total = [], [], 0
    for _ in range(rng.randint(2, 6)):
        number = rng.randint(2, 400)
        sentences.append(
            f"{name} {rng.choice(_VERBS)} {number} {thing} at the {rng.choice(_PLACES)} {rng.choice(_TIMES)}."
        )
        work.append(f"Then there are {total} + {number} = {total + number} {thing}.")
        total += number
    sentences.append(rng.choice(_ENDS).format(thing=thing))
    return name, " ".join(sentences), "\n".join([*work, f"#### {total}"])
