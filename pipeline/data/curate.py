"""Raw rows in, problems, traces and pairs out; every row that is not accepted is in the quarantine with its reason.

The rows stream through twice. The first pass reads, cleans and spills them to disk with a few keys per row; the keys
alone tell the duplicates. The second pass, over the spill, drops those, then what overlaps with the evaluation split,
then what is too easy or too hard. Rows are split before the overlap is looked for, because it needs the split; that is
sound as the split is a function of the prompt alone (records.is_held_out). Sources that declare themselves evaluation
are read first, so of two equal rows the train row goes.
"""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import numpy as np
import polars as pl

from pipeline.data.clean import clean
from pipeline.data.contamination import SAMPLE_ROWS, EvaluationIndex
from pipeline.data.duplicates import Duplicates, find_duplicates
from pipeline.data.fields import check_patterns, field_map, to_table
from pipeline.data.funnel import Funnel
from pipeline.data.pairs import clean_pairs, read_pairs
from pipeline.data.quarantine import Reason, reject, reject_rows
from pipeline.data.sources import Raw, read
from pipeline.data.spill import Spill
from pipeline.data.tables import TableWriter
from pipeline.data.words import Hashes, numbers, ragged, sequence_hashes
from pipeline.errors import InputError
from pipeline.params import Curation, GeneratedSource, RowSource, Source
from pipeline.records import PreferencePair, Problem, Quarantined, Trace, normalise, problem_id, prompt_hash

BATCH_ROWS = 50_000
BATCH_BYTES = 64 * 2**20

ACCEPTED = pl.col("reason").is_null()


def curate(options: Curation, *, seed: int, held_out: float, root: Path, folder: Path) -> Funnel:
    """Write problems, traces, pairs and quarantine (parquet) to `folder`. Source paths count from `root`.

    `held_out` is the share of the problems that go to the evaluation split. Raises InputError where a source as a whole
    cannot be read or has no rows.
    """
    for source in options.sources:
        check_patterns(source)
    with TemporaryDirectory(dir=folder, prefix=".spill-") as scratch, _Output(folder) as output:
        spill = Spill(Path(scratch))
        for source in sorted(options.sources, key=lambda source: _declared_split(source) != "evaluation"):
            rows = read(source, seed=seed, root=root, downloads=Path(scratch), line_bytes=options.limits.line_bytes)
            _spill_source(source, rows, options, spill, output, seed=seed, held_out=held_out)
        duplicates = find_duplicates(spill, options.near_duplicates)
        index = _evaluation_index(spill, duplicates, options)
        for start, table in spill.parts():
            output.write(_judge(table, start, duplicates, index, options))
        generated = [source for source in options.sources if isinstance(source, GeneratedSource)]
        if generated:
            pairs = clean_pairs(pl.concat([read_pairs(source, seed) for source in generated]), index)
            for source in generated:
                output.write_pairs(source.name, pairs.filter(pl.col("source") == source.name))
    output.funnel.check()
    return output.funnel


class _Output:
    """The four tables and the counts of what goes into them."""

    def __init__(self, folder: Path) -> None:
        self.funnel = Funnel()
        self._stack = ExitStack()
        records = {"problems": Problem, "traces": Trace, "pairs": PreferencePair, "quarantine": Quarantined}
        self._tables = {
            name: self._stack.enter_context(TableWriter(folder / f"{name}.parquet", record))
            for name, record in records.items()
        }

    def __enter__(self) -> "_Output":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def quarantine(self, table: pl.DataFrame) -> pl.DataFrame:
        """Write the rows that have a reason; returns the others."""
        rejected = table.filter(~ACCEPTED)
        self._tables["quarantine"].write(rejected)
        self.funnel.add_quarantined(rejected)
        return table.filter(ACCEPTED)

    def write(self, table: pl.DataFrame) -> None:
        """Write judged rows to the tables where they belong."""
        table = self.quarantine(table)
        ids = map(problem_id, table["prompt"], table["gold"])
        table = table.with_columns(id=pl.Series(ids, dtype=pl.String))
        self._tables["problems"].write(table)
        self.funnel.add_problems(table)
        traces = table.filter((pl.col("split") == "train") & (pl.col("thinking") != ""))
        traces = traces.select("thinking", problem_id="id", answer="gold", origin="source")
        self._tables["traces"].write(traces)
        self.funnel.add_traces(traces)

    def write_pairs(self, source: str, table: pl.DataFrame) -> None:
        self.funnel.read[f"{source}/pairs"] += table.height
        table = self.quarantine(table)
        self._tables["pairs"].write(table)
        self.funnel.pairs += table.height


def _declared_split(source: Source) -> str | None:
    return source.split if isinstance(source, RowSource) else None


def _spill_source(
    source: Source, rows: Iterator[Raw], options: Curation, spill: Spill, output: _Output, *, seed: int, held_out: float
) -> None:
    """Read and clean a source; spill what is good."""
    fields = field_map(source)
    for batch in _ahead(_batches(rows)):
        output.funnel.read[source.name] += len(batch)
        table = output.quarantine(clean(to_table(batch, source), fields, options))
        normalised = [normalise(prompt) for prompt in table["prompt"]]
        exact = np.array([prompt_hash(prompt, seed) for prompt in normalised], dtype=np.uint64)
        table = table.with_columns(normalised=pl.Series(normalised, dtype=pl.String))
        by_hash = pl.Series(np.where(exact < math.ceil(held_out * 2**64), "evaluation", "train"), dtype=pl.String)
        declared = _declared_split(source)
        table = table.with_columns(split=by_hash if declared is None else pl.lit(declared))
        spill.append(table, exact=exact, block=_blocks(table))
    if not output.funnel.read[source.name]:
        raise InputError(f"curation.sources.{source.name}: has no rows")


def _batches(rows: Iterable[Raw]) -> Iterator[list[Raw]]:
    """Batches of rows, bounded in number and in bytes."""
    batch: list[Raw] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row.size
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _ahead(batches: Iterator[list[Raw]]) -> Iterator[list[Raw]]:
    """The same batches; a thread reads the next one while this one is worked on."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        pending = reader.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = reader.submit(next, batches, None)
            yield batch


def _blocks(table: pl.DataFrame) -> Hashes:
    """Rows of one block may be near duplicates: the same numbers in the same order and the same gold answer."""
    gold = table["gold"].str.to_lowercase().str.replace_all(r"[\s,$]|\.0+$", "")
    return sequence_hashes(ragged(pl.select(pl.concat_list(numbers(table["normalised"]), gold)).to_series()))


def _evaluation_index(spill: Spill, duplicates: Duplicates, options: Curation) -> EvaluationIndex:
    different = np.flatnonzero(duplicates.originals < 0)
    held_out = different[spill.keys()["held_out"].to_numpy()[different]]
    problems = spill.gather(held_out, ["prompt", "gold", "normalised"])
    ids = pl.Series(map(problem_id, problems["prompt"], problems["gold"]), dtype=pl.String)
    sample = spill.gather(different[:: max(1, math.ceil(len(different) / SAMPLE_ROWS))], ["normalised"])
    return EvaluationIndex(ids, problems["normalised"], sample["normalised"], options.decontamination)


def _judge(
    table: pl.DataFrame, start: int, duplicates: Duplicates, index: EvaluationIndex, options: Curation
) -> pl.DataFrame:
    """Fill in the reasons that take other rows to find, and the difficulty band. `start`: the part's first position."""
    for reason, details in duplicates.details(start, start + table.height).items():
        table = reject_rows(table, reason, details)
    train = table.select((ACCEPTED & (pl.col("split") == "train")).arg_true()).to_series()
    overlaps = index.overlaps(table["normalised"].gather(train))
    table = reject_rows(table, Reason.OVERLAP, {train[position]: detail for position, detail in overlaps.items()})
    band = options.difficulty
    least, most = (-math.inf if band.min is None else band.min), (math.inf if band.max is None else band.max)
    outside = ~pl.col("difficulty").is_between(least, most)
    detail = pl.format("{} is not between {} and {}", "difficulty", pl.lit(least), pl.lit(most))
    return reject(table, Reason.DIFFICULTY, outside, detail)
