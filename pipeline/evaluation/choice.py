"""Which held-out problems a model is asked."""

import polars as pl


def choose(problems: pl.DataFrame, checkable: int, general: int) -> pl.DataFrame:
    """The first `checkable` and `general` problems of the evaluation split by id: a hash, so a fair draw."""
    held_out = problems.filter(pl.col("split") == "evaluation").sort("id")
    is_general = pl.col("verifier") == "none"
    return pl.concat([held_out.filter(~is_general).head(checkable), held_out.filter(is_general).head(general)])
