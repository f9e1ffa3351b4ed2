"""What the quality gates judge: one small frame of measures per table, a row for each row of the table.

There are two kinds of columns: a figure (`prompt_chars`) that a range holds, and a defect (`unreadable_gold`), which is
null where the row is sound and otherwise quotes what is wrong with it, so that a failed gate shows the culprit itself.
The long texts stay here: only measures are copied into pandas, where the gates run.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import polars as pl

from pipeline import chat
from pipeline.data.quarantine import Reason
from pipeline.params import GeneratedSource, GymSource, Source
from pipeline.records import PreferencePair, Problem, Quarantined, Trace, Verifier, schema
from pipeline.rewards.answer import readable

TABLES: dict[str, type] = {
    "problems": Problem,
    "traces": Trace,
    "pairs": PreferencePair,
    "quarantine": Quarantined,
}
EXCERPT = 80  # characters of a text that a defect quotes
OPTIONAL = ("difficulty",)  # fields that may be null
BY_ITSELF = (Reason.UNREADABLE, Reason.MISSING, Reason.GOLD, Reason.MARKER, Reason.LANGUAGE)
"""Reasons that a row has whatever the others are."""
CONVERSATION = 64  # traces rendered as one conversation


@dataclass(frozen=True, slots=True)
class Accepted:
    """The figures of an accepted set that the next one's drift is measured against."""

    mean_prompt_chars: float
    task_shares: dict[str, float]


def accepted_file(runs: Path, sources: Iterable[Source]) -> Path:
    """Where the stage keeps the last accepted set's figures; other sources are another data set."""
    return runs / "accepted" / f"{set_name(sources)}.json"


def set_name(sources: Iterable[Source]) -> str:
    """What tells a data set by its sources, short enough for a file's name.

    Files are told by their source's name alone, as what they hold may drift; what is made here is what params say.
    """
    names = "+".join(sorted(map(_source_name, sources)))
    return names if len(names) <= 100 else f"{names[:80]}-{hashlib.sha256(names.encode()).hexdigest()[:16]}"


def _source_name(source: Source) -> str:
    match source:
        case GeneratedSource(families=mix) | GymSource(options=mix):
            made = json.dumps([getattr(source, "dataset", ""), mix], sort_keys=True)
            return f"{source.name}-{hashlib.sha256(made.encode()).hexdigest()[:8]}"
    return source.name


def read_accepted(path: Path) -> Accepted | None:
    """The last accepted set's figures; None where no set was accepted yet."""
    return Accepted(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def column_types(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """One row per column that a table has or ought to have: its type and the type it ought to have."""
    rows = []
    for name, table in tables.items():
        expected = schema(TABLES[name])
        for column in [*expected, *(column for column in table.columns if column not in expected)]:
            found = str(table.schema[column]) if column in table.columns else "absent"
            rows.append((name, column, found, str(expected.get(column, "absent"))))
    return pl.DataFrame(rows, schema=["table", "column", "type", "expected"], orient="row")


def measure_problems(problems: pl.DataFrame) -> pl.DataFrame:
    prompt = pl.col("prompt")
    return problems.select(
        "id",
        "verifier",
        "split",
        "language",
        "difficulty",
        _missing(problems),
        prompt_chars=prompt.str.len_chars(),
        gold_chars=pl.col("gold").str.len_chars(),
        repeated_prompt=_excerpt("prompt", where=prompt.is_duplicated()),
        marker=_markers("prompt"),
        unreadable_gold=_unreadable_gold(problems),
    )


def measure_traces(traces: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    known = problems.select(pl.col("id").alias("problem_id"), "prompt", "split").unique("problem_id", keep="first")
    joined = traces.join(known, on="problem_id", how="left", maintain_order="left")
    return joined.select(
        _missing(traces),
        problem_split=pl.col("split").fill_null("no such problem"),
        thinking_chars=pl.col("thinking").str.len_chars(),
        answer_chars=pl.col("answer").str.len_chars(),
        repeated=_excerpt("thinking", where=pl.struct("problem_id", "thinking", "answer").is_duplicated()),
        lost_in_template=_excerpt("thinking", where=~_survives_template(joined)),
    )


def measure_pairs(pairs: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    held_out = problems.filter(pl.col("split") == "evaluation")["prompt"]
    return pairs.select(
        _missing(pairs),
        *(pl.col(text).str.len_chars().alias(f"{text}_chars") for text in ("prompt", "chosen", "rejected")),
        same_answer=_excerpt("chosen", where=pl.col("chosen") == pl.col("rejected")),
        repeated=_excerpt("prompt", where=pl.struct("prompt", "chosen", "rejected").is_duplicated()),
        held_out_prompt=_excerpt("prompt", where=pl.col("prompt").is_in(held_out.implode())),
        marker=_markers("prompt", "chosen", "rejected"),
    )


def measure_tasks(problems: pl.DataFrame) -> pl.DataFrame:
    """One row per task: how many problems it has, and what share of all (0 to 1)."""
    shares = pl.col("problems") / pl.col("problems").sum()
    return problems.group_by("task").agg(problems=pl.len()).sort("task").with_columns(share=shares)


def summary(problems: pl.DataFrame, tasks: pl.DataFrame) -> Accepted:
    """The figures of this set that a later one is compared with."""
    mean_prompt_chars = problems["prompt"].str.len_chars().mean()
    return Accepted(float(mean_prompt_chars or 0), dict(tasks.select("task", "share").iter_rows()))  # pyrefly: ignore[bad-argument-type]


def measure_set(problems: pl.DataFrame) -> pl.DataFrame:
    """How many problems there are, in one row."""
    held_out = problems.filter(pl.col("split") == "evaluation").height
    return pl.DataFrame(
        {
            "problems": [problems.height],
            "held_out_problems": [held_out],
            "train_problems": [problems.height - held_out],
        }
    )


def measure_quarantine(quarantine: pl.DataFrame, kept: int) -> pl.DataFrame:
    """Which share of kept and dropped rows together was dropped, in one row. Pairs are rows as problems are."""
    return pl.DataFrame({"quarantined_share": [quarantine.height / max(1, kept + quarantine.height)]})


def measure_sources(problems: pl.DataFrame, pairs: pl.DataFrame, quarantine: pl.DataFrame) -> pl.DataFrame:
    """One row per source: rows kept and dropped, and what its first row lacks where it was not understood.

    So it is where no row was kept and each lacks something by itself, as with a mistyped column, verifier or language.
    A source whose rows were all there before has nothing new, and that may be.
    """
    kept = pl.concat([problems.select("source"), pairs.select(source="origin")])
    unread = pl.col("reason").is_in(BY_ITSELF).all()
    dropped = quarantine.group_by("source").agg(
        pl.len().alias("dropped"), pl.when(unread).then(pl.col("detail").first().str.slice(0, EXCERPT)).alias("lacks")
    )
    return (
        kept.group_by("source")
        .agg(pl.len().alias("kept"))
        .join(dropped, on="source", how="full", coalesce=True)
        .with_columns(pl.col("kept", "dropped").fill_null(0))
        .with_columns(not_understood=pl.when(pl.col("kept") == 0).then("lacks"))
        .drop("lacks")
        .sort("source")
    )


def reasons(quarantine: pl.DataFrame) -> pl.DataFrame:
    """Why rows were dropped: one row per reason, with the number of rows and the first of them as an example."""
    examples = [pl.col(column).first() for column in ("source", "file", "row", "detail", "content")]
    return quarantine.group_by("reason").agg(pl.len().alias("rows"), *examples).sort("rows", "reason", descending=True)


def measure_drift(current: Accepted, previous: Accepted) -> pl.DataFrame:
    """How far this set is from the last accepted one, in one row.

    `length_drift` is the relative change of the mean prompt length, `task_drift` the total variation distance between
    the task mixes: half the sum of the absolute differences of the shares, 0 (same mix) to 1 (no task in common).
    """
    mixes = task_mixes(current, previous)
    return pl.DataFrame(
        {
            "length_drift": [abs(current.mean_prompt_chars / previous.mean_prompt_chars - 1)],
            "task_drift": [(mixes["share"] - mixes["last_share"]).abs().sum() / 2],
        }
    )


def task_mixes(current: Accepted, previous: Accepted) -> pl.DataFrame:
    """One row per task of either set: its share now and in the last accepted set."""
    tasks = sorted({*current.task_shares, *previous.task_shares})
    mixes = {"share": current.task_shares, "last_share": previous.task_shares}
    return pl.DataFrame({"task": tasks} | {name: [mix.get(task, 0.0) for task in tasks] for name, mix in mixes.items()})


def _excerpt(text: str, *, where: pl.Expr | pl.Series) -> pl.Expr:
    """The beginning of a text in the rows that satisfy the condition, null in the others."""
    return pl.when(where).then(pl.col(text).str.slice(0, EXCERPT))


def _missing(table: pl.DataFrame) -> pl.Expr:
    """Names of the fields that are null."""
    required = [column for column in table.columns if column not in OPTIONAL]
    names = [pl.when(pl.col(column).is_null()).then(pl.lit(column)) for column in required]
    return pl.concat_str(names, separator=", ", ignore_nulls=True).replace("", None).alias("missing")


def _markers(*texts: str) -> pl.Expr:
    """The chat template's markers that occur in any of the texts."""
    found = [pl.col(text).str.extract_many(list(chat.MARKERS)).list.join(" ") for text in texts]
    return pl.concat_str(found, separator=" ", ignore_nulls=True).str.strip_chars().replace("", None)


def _unreadable_gold(problems: pl.DataFrame) -> pl.Series:
    """Gold answers that their own verifier cannot read. Each distinct one is tried once, digits alone only as tests."""
    plain = pl.col("gold").str.contains(r"^-?[0-9]{1,20}$") & (pl.col("verifier") != "code")
    tried = pl.col("verifier").is_in(get_args(Verifier)) & ~plain
    golds = problems.select("verifier", "gold").filter(tried).unique()
    unreadable = golds.filter([not readable(gold, verifier) for verifier, gold in golds.iter_rows()])
    quoted = unreadable.with_columns(unreadable=pl.col("gold").str.slice(0, EXCERPT))
    return problems.join(quoted, on=["verifier", "gold"], how="left", maintain_order="left")["unreadable"]


def _survives_template(traces: pl.DataFrame) -> pl.Series:
    """Whether thinking and answer come back when the rendered conversation is parsed again.

    Traces become the turns of long conversations, and the first turn of each comes once more at its end. So each is
    tried as an earlier turn (a template that drops the thinking of earlier turns loses it), and one in `CONVERSATION`
    as the first and as the last turn too. All traces are tried that hold something which a template could take for its
    own (markup, white space at an end), and of the plain ones every `CONVERSATION`th.
    """
    turns = traces.select(pl.col("prompt", "thinking", "answer").fill_null("")).with_row_index("row")
    special = pl.any_horizontal(pl.col("prompt", "thinking", "answer").str.contains(r"[<>|{}&\\]|^\s|\s$|^$"))
    tried = turns.filter(special | (pl.col("row") % CONVERSATION == 0))
    parts = tried.drop("row").iter_slices(CONVERSATION)
    survived = pl.Series([come_back for part in parts for come_back in _come_back(part.rows())], dtype=pl.Boolean)
    return pl.repeat(True, turns.height, eager=True).scatter(tried["row"], survived)


def _come_back(turns: list[tuple[str, str, str]]) -> list[bool]:
    conversation = [*turns, turns[0]]
    messages = []
    for prompt, thinking, answer in conversation:
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": answer, "reasoning_content": thinking})
    completions = [text.partition("<|user|>")[0] for text in chat.render(messages).split("<|assistant|>")[1:]]
    if len(completions) != len(conversation):  # a text holds a turn's marker: find out which
        return [_come_back([turn])[0] for turn in turns] if len(turns) > 1 else [False]
    first, *middle, last = (
        chat.parse_completion(completion) == chat.Completion(thinking, answer, well_formed=True)
        for completion, (_, thinking, answer) in zip(completions, conversation, strict=True)
    )
    return [first and last, *middle]
