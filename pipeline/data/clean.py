"""The rules that a row is judged by on its own, without looking at other rows. Nothing is repaired: a row passes as it
is, or it goes to the quarantine with its reason.
"""

from typing import get_args

import polars as pl

from pipeline.chat import MARKERS
from pipeline.data.fields import PLAIN_TASK
from pipeline.data.language import detect
from pipeline.data.quarantine import Reason, reject, reject_rows
from pipeline.params import Curation, FieldMap
from pipeline.records import Verifier
from pipeline.rewards.answer import readable

_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
_TASK_CHARS = 100
_VISIBLE = r"[^\s\p{Cf}]"
_PLAIN_NUMBER = r"^[+-]?(?:[0-9]{1,3}(?:,[0-9]{3}){1,10}|[0-9]{1,30})(?:\.[0-9]{1,30})?$"
"""What every verifier of answers can read, so that only the other gold answers are looked at one by one."""


def clean(table: pl.DataFrame, fields: FieldMap, options: Curation) -> pl.DataFrame:
    """Fill `reason`, `detail` and `language` of a table of `pipeline.data.fields.COLUMNS`."""
    table = _unreadable(table, options)
    table = _missing(table, fields)
    table = _gold(table)
    for name in ("prompt", "gold", "thinking"):
        table = reject_markers(table, name)
    return _language(table, options.languages)


def _unreadable(table: pl.DataFrame, options: Curation) -> pl.DataFrame:
    limits = options.limits
    for name, limit in (
        ("prompt", limits.prompt_chars),
        ("gold", limits.gold_chars),
        ("thinking", limits.thinking_chars),
    ):
        length = pl.col(name).str.len_chars()
        detail = pl.format("{}: {} characters, more than {}", pl.lit(name), length, pl.lit(limit))
        table = reject(table, Reason.UNREADABLE, length > limit, detail)
        control = pl.col(name).str.contains(_CONTROL)
        table = reject(table, Reason.UNREADABLE, control, pl.lit(f"{name}: has control characters"))
    unknown = ~pl.col("verifier").is_in(get_args(Verifier))
    detail = pl.format("verifier: {} is not one of {}", "verifier", pl.lit(", ".join(get_args(Verifier))))
    table = reject(table, Reason.UNREADABLE, unknown, detail)
    plain = pl.col("task").str.contains(PLAIN_TASK) & (pl.col("task").str.len_chars() <= _TASK_CHARS)
    odd = ~plain & (pl.col("task") != "")
    return reject(table, Reason.UNREADABLE, odd, pl.format("task: {} is no plain name", pl.col("task").str.head(60)))


def _missing(table: pl.DataFrame, fields: FieldMap) -> pl.DataFrame:
    demanded = {"prompt": fields.prompt, "gold": fields.gold, "verifier": fields.verifier, "task": fields.task}
    for name, column in demanded.items():
        visible = pl.col(name).str.contains(_VISIBLE).fill_null(False)
        table = reject(table, Reason.MISSING, ~visible, pl.lit(f"{column or name}: absent or empty"))
    if fields.difficulty is not None:
        detail = pl.lit(f"{fields.difficulty}: absent")
        table = reject(table, Reason.MISSING, pl.col("difficulty").is_null(), detail)
    return table


def _gold(table: pl.DataFrame) -> pl.DataFrame:
    """Every gold answer that is not a plain number is shown to its verifier, each different one once."""
    doubtful = table.select("reason", "gold", "verifier").with_row_index("position")
    plain = pl.col("gold").str.contains(_PLAIN_NUMBER) & (pl.col("verifier") != "code")
    doubtful = doubtful.filter(pl.col("reason").is_null() & ~plain & (pl.col("verifier") != "none"))
    different = doubtful.select("gold", "verifier").unique(maintain_order=True)
    different = different.filter(
        pl.Series([not readable(gold, verifier) for gold, verifier in different.iter_rows()], dtype=pl.Boolean)
    )
    unread = doubtful.join(different, on=["gold", "verifier"], how="semi", maintain_order="left")
    details = {
        position: f"{gold!r} cannot be read by verifier {verifier}"
        for position, gold, verifier in unread.select("position", "gold", "verifier").iter_rows()
    }
    return reject_rows(table, Reason.GOLD, details)


def reject_markers(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """A marker of the chat template inside a text would be read as the template's own."""
    found = pl.col(name).str.contains_any(list(MARKERS))
    detail = pl.format("{}: holds {}", pl.lit(name), pl.col(name).str.extract_many(list(MARKERS)).list.first())
    return reject(table, Reason.MARKER, found, detail)


def _language(table: pl.DataFrame, wanted: list[str]) -> pl.DataFrame:
    """A row's own claim counts where it makes one; the other prompts are looked at. No words, no language: ""."""
    unknown = pl.col("reason").is_null() & pl.col("language").is_null()
    prompts = table.filter(unknown)["prompt"]
    positions = table.select(unknown.arg_true()).to_series()
    table = table.with_columns(table["language"].scatter(positions, detect(prompts, wanted)).alias("language"))
    detail = pl.format("{} is not among {}", "language", pl.lit(", ".join(wanted)))
    return reject(table, Reason.LANGUAGE, ~pl.col("language").is_in(["", *wanted]), detail)
