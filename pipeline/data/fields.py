"""From rows as they came to the columns that curation works on, by the source's field map.

What cannot be a text or a number is marked here (`unreadable`); that a field is absent or empty is found later, by one
rule for all of them. Patterns run in Polars' engine, which is linear in the text: no pattern can hang the run.
"""

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import polars as pl

from pipeline.data.quarantine import VERDICT_COLUMNS, Reason, reject, reject_rows
from pipeline.data.sources import Raw
from pipeline.errors import InputError
from pipeline.params import FieldMap, FileSource, GeneratedSource, GymSource, HubSource, Source

COLUMNS = {
    "source": pl.String(),
    "file": pl.String(),
    "row": pl.Int64(),
    "content": pl.String(),
    **VERDICT_COLUMNS,
    "prompt": pl.String(),
    "gold": pl.String(),
    "thinking": pl.String(),  # null where the source has no work for this row
    "difficulty": pl.Float64(),
    "verifier": pl.String(),
    "task": pl.String(),
    "language": pl.String(),  # the row's own claim; null where it makes none
}

_LARGEST_EXACT = 2**53
"""JSON readers hold larger whole numbers as floats: digits are lost."""

_PART = r"[A-Za-z0-9_:-][A-Za-z0-9_.: -]*"
PLAIN_TASK = rf"^{_PART}(?:/{_PART})*$"
"""Figures are named after tasks, and MLflow takes the names for paths."""
_NOT_PLAIN = r"[ -]*(?:[^A-Za-z0-9_.: /-][ -]*)+"


def field_map(source: Source) -> FieldMap:
    match source:
        case GeneratedSource():
            return FieldMap(
                thinking="thinking", difficulty="difficulty", verifier="verifier", task="task", language="language"
            )
        case GymSource():
            return FieldMap(prompt="question", gold="answer")
        case FileSource() | HubSource():
            return source.fields


def check_patterns(source: Source) -> None:
    """Raise InputError where a pattern uses what Polars' engine does not have (look-around, back references)."""
    fields = field_map(source)
    for key in ("answer_pattern", "thinking_strip", "difficulty_count"):
        if (pattern := getattr(fields, key)) is None:
            continue
        try:
            pl.select(pl.lit("").str.count_matches(_behind_thinking(pattern) if key == "answer_pattern" else pattern))
        except pl.exceptions.ComputeError as error:
            raise InputError(
                f"curation.sources.{source.name}.fields.{key}: {pattern!r}: {' '.join(str(error).split())}"
            ) from error


def to_table(rows: Sequence[Raw], source: Source) -> pl.DataFrame:
    """A table of `COLUMNS` with a row for every raw row."""
    fields = field_map(source)
    faults = {index: row.fault for index, row in enumerate(rows) if row.fault}
    table = pl.DataFrame(
        {
            "file": [row.file for row in rows],
            "row": [row.row for row in rows],
            "content": [row.content for row in rows],
            "prompt": _texts(rows, fields.prompt, faults),
            "gold": _texts(rows, fields.gold, faults, numbers=True),
            "thinking": _texts(rows, fields.thinking, faults),
            "difficulty": _numbers(rows, fields.difficulty, faults),
            "verifier": _texts(rows, fields.verifier, faults),
            "task": _texts(rows, fields.task, faults),
            "language": _texts(rows, fields.language, faults),
        }
    ).with_columns(source=pl.lit(source.name), reason=pl.lit(None, pl.String), detail=pl.lit(None, pl.String))
    table = reject_rows(table, Reason.UNREADABLE, faults)
    table = _apply_patterns(table, fields)
    table = _plain_tasks(table)
    table = table.with_columns(**{name: pl.lit(value, pl.String) for name, value in _of_all_rows(source).items()})
    return table.select(pl.col(name).cast(dtype) for name, dtype in COLUMNS.items())


def _of_all_rows(source: Source) -> dict[str, str | None]:
    """What the source, not the row, says."""
    match source:
        case GymSource():  # its prompts are English, ciphers included
            return {"task": source.name, "verifier": source.verifier, "language": "en"}
        case FileSource() | HubSource():
            said = {"task": source.task, "verifier": source.verifier, "language": source.language}
            return {name: value for name, value in said.items() if getattr(source.fields, name) is None}
    return {}


def _texts(rows: Sequence[Raw], name: str | None, faults: dict[int, str], *, numbers: bool = False) -> pl.Series:
    """A column of texts; with `numbers`, a number stands for its usual way of writing."""
    values: list[Any] = [row.columns.get(name) for row in rows] if name else [None] * len(rows)
    for index, value in enumerate(values):
        if type(value) is str or value is None:
            continue
        values[index] = _written(value) if numbers else None
        if values[index] is None:
            faults.setdefault(index, f"{name}: {_shown(value)} is not a text{' or an exact number' if numbers else ''}")
    return pl.Series(values, dtype=pl.String)


def _written(value: Any) -> str | None:
    """A number as text; None where it is no number, or one whose digits the JSON reader has lost."""
    if type(value) is int:
        return str(value)
    if type(value) is float and abs(value) < _LARGEST_EXACT:  # not so for NaN
        return str(int(value)) if value.is_integer() else repr(value)
    if type(value) is Decimal:
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    return None


def _numbers(rows: Sequence[Raw], name: str | None, faults: dict[int, str]) -> pl.Series:
    values: list[Any] = [row.columns.get(name) for row in rows] if name else [None] * len(rows)
    for index, value in enumerate(values):
        if type(value) is Decimal:
            values[index] = float(value)
        elif value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            values[index] = None
            faults.setdefault(index, f"{name}: {_shown(value)} is not a finite number")
    return pl.Series(values, dtype=pl.Float64, strict=False)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _behind_thinking(answer_pattern: str) -> str:
    """A pattern whose first group is what stands before the answer, and whose second is the answer's own first one."""
    return f"^((?s:.*?))(?:{answer_pattern})"


def _apply_patterns(table: pl.DataFrame, fields: FieldMap) -> pl.DataFrame:
    """Cut the gold answer and the thinking out of the `gold` column, count the difficulty, strip the thinking."""
    if fields.difficulty_count is not None:
        table = table.with_columns(difficulty=pl.col("gold").str.count_matches(fields.difficulty_count))
    if fields.answer_pattern is not None:
        parts = pl.col("gold").str.extract_groups(_behind_thinking(fields.answer_pattern))
        table = table.with_columns(_whole="gold", thinking=parts.struct[0], gold=parts.struct[1])
        absent = pl.col("_whole").str.contains(r"\S") & pl.col("gold").is_null()
        detail = pl.lit(f"{fields.gold}: answer_pattern {fields.answer_pattern!r} is not found in it")
        table = reject(table, Reason.MISSING, absent, detail).drop("_whole")
    if fields.thinking_strip is not None:
        table = table.with_columns(pl.col("thinking").str.replace_all(fields.thinking_strip, ""))
    return table.with_columns(pl.col("prompt", "gold", "thinking").str.strip_chars())


def _plain_tasks(table: pl.DataFrame) -> pl.DataFrame:
    """Labels as figures may be named: `Counting & Probability` becomes `Counting-Probability`, `Géométrie` `Geometrie`.

    What is no plain name even so is left to the quarantine: a broken path (`a//b`), or a label of which nothing would
    be left, which stays as it is to be shown there.
    """
    odd = table["task"].filter(~table["task"].str.contains(PLAIN_TASK)).unique()
    if odd.is_empty():
        return table
    plain = odd.str.normalize("NFKD").str.replace_all(r"\p{M}", "").str.replace_all(_NOT_PLAIN, "-")
    plain = plain.str.replace_all("[ -]*/[ -]*", "/").str.strip_chars(" -")
    return table.with_columns(pl.col("task").replace(odd, plain.zip_with(plain != "", odd)))
