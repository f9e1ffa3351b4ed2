"""Preference pairs: the rules that they share with problems."""

import json
from dataclasses import asdict

import polars as pl

from pipeline.data.clean import reject_markers
from pipeline.data.contamination import EvaluationIndex
from pipeline.data.quarantine import CONTENT_CHARS, Reason, reject, reject_rows
from pipeline.generated.requests import preference_pairs
from pipeline.params import GeneratedSource
from pipeline.records import PreferencePair, normalise, schema

_TEXTS = ("prompt", "chosen", "rejected")


def read_pairs(source: GeneratedSource, seed: int) -> pl.DataFrame:
    """A source's pairs with the columns that the quarantine asks for."""
    rows = [asdict(pair) for pair in preference_pairs(source, seed)]
    return pl.DataFrame(rows, schema=schema(PreferencePair)).with_columns(
        source=pl.lit(source.name),
        file=pl.lit("pairs"),
        row=pl.int_range(1, pl.len() + 1),
        content=pl.Series([json.dumps(row, ensure_ascii=False)[:CONTENT_CHARS] for row in rows], dtype=pl.String),
        reason=pl.lit(None, pl.String),
        detail=pl.lit(None, pl.String),
    )


def clean_pairs(table: pl.DataFrame, index: EvaluationIndex) -> pl.DataFrame:
    """Fill `reason` and `detail`: empty texts, reserved markers, duplicates, overlap with the evaluation split."""
    for name in _TEXTS:
        table = reject(table, Reason.MISSING, pl.col(name).str.strip_chars() == "", pl.lit(f"{name}: empty"))
    for name in _TEXTS:
        table = reject_markers(table, name)
    again = ~pl.struct(_TEXTS).is_first_distinct()
    table = reject(table, Reason.EXACT, again, pl.lit("the same pair came before"))
    normalised = pl.Series(map(normalise, table["prompt"]), dtype=pl.String)
    return reject_rows(table, Reason.OVERLAP, index.overlaps(normalised))
