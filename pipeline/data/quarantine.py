"""Why a row is not accepted. A table on its way through curation carries two columns, `reason` and `detail`, null as
long as the row is good; the first rule that a row breaks fills them, and no later rule overwrites them.
"""

from enum import StrEnum

import polars as pl

CONTENT_CHARS = 2_000
"""As much of a quarantined row is kept for reading."""


class Reason(StrEnum):
    """In the order in which the rules are tried."""

    UNREADABLE = "unreadable"
    MISSING = "missing field"
    GOLD = "gold unreadable"
    MARKER = "reserved marker"
    LANGUAGE = "language"
    EXACT = "exact duplicate"
    NEAR = "near duplicate"
    OVERLAP = "evaluation overlap"
    DIFFICULTY = "difficulty"


REASONS = tuple(reason.value for reason in Reason)

VERDICT_COLUMNS = {"reason": pl.String(), "detail": pl.String()}


def reject(table: pl.DataFrame, reason: Reason, where: pl.Expr, detail: pl.Expr) -> pl.DataFrame:
    """Give the rows that satisfy `where` and are still good this reason. A null condition counts as not satisfied."""
    hit = table.select(pl.col("reason").is_null() & where.fill_null(False)).to_series()
    if not hit.any():
        return table
    return table.with_columns(
        reason=pl.when(hit).then(pl.lit(reason.value)).otherwise("reason"),
        detail=pl.when(hit).then(detail).otherwise("detail"),
    )


def reject_rows(table: pl.DataFrame, reason: Reason, details: dict[int, str]) -> pl.DataFrame:
    """The same for rows given by position, each with its own detail."""
    found = pl.lit(pl.Series([details.get(position) for position in range(table.height)], dtype=pl.String))
    return reject(table, reason, found.is_not_null(), found) if details else table
