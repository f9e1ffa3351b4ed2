"""The records that stages hand to each other, and their parquet tables.

Columns of a table are the fields of its record, in order.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import polars as pl

from pipeline.errors import InputError
from pipeline.files import atomic_file

Verifier = Literal["exact", "numeric", "math", "code", "none"]
"""How an answer is checked: same text, same number, mathematically equal (math-verify), a program that passes the gold
answer's tests, or not checkable at all."""

Split = Literal["train", "evaluation"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question whose answer can be checked."""

    id: str  # content hash of prompt and gold answer
    source: str  # name of the source in params
    task: str  # family of problems, e.g. "sum"; the unit of class balance and of evaluation tables
    prompt: str
    gold: str  # the right answer, in a form that its verifier reads
    verifier: Verifier
    language: str  # ISO 639-1, or "" where the prompt has no words
    difficulty: float | None  # the source's own scale; None where it has none
    split: Split


@dataclass(frozen=True, slots=True)
class Trace:
    """A worked solution of a problem."""

    problem_id: str
    thinking: str
    answer: str
    origin: str  # who wrote it: a source's name or a model's stage


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt, of which the first is the better one."""

    prompt: str
    chosen: str
    rejected: str
    origin: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An input row that was not accepted, and why."""

    source: str
    file: str
    row: int  # line (jsonl) or row (parquet) number in the file, from 1
    reason: str  # one of pipeline.data.quarantine.REASONS
    detail: str  # what exactly broke the rule
    content: str  # the row as it came, cut to a bounded length


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of a problem by a model, judged."""

    model: str  # the stage that made the model
    problem_id: str
    task: str
    number: int  # 0, 1, … of the same problem
    completion: str
    tokens: int  # of the completion
    finished: bool  # False where the token limit cut it
    well_formed: bool
    verdict: str  # right | wrong | unparseable | timed out; unchecked where there is no right answer
    verifier: str  # whose verdict, and in which version: "numeric 1"; "none"
    difficulty: float | None  # the problem's
    prompt: str
    answer: str  # what stands between the answer's tags; "" where the completion is not well formed
    language: float  # share of the thinking's words that are in the problem's language
    preference: float | None  # the preference model's score, of general prompts


_RAISED = re.compile("[\u00b2\u00b3\u00b9\u2070\u2074-\u207f]+")
_LOWERED = re.compile("[\u2080-\u208e]+")
_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def normalise(text: str) -> str:
    """Text as duplicates see it: NFKC, lower case, no invisible characters, runs of white space as one blank.

    NFKC alone would make 2² to 22 and 5½ to 51⁄2; here they are 2^2 and 5 1⁄2.
    """
    if not text.isascii():  # NFKC leaves ASCII as it is
        text = _FRACTION.sub(r" \g<0>", _LOWERED.sub(r"_\g<0>", _RAISED.sub(r"^\g<0>", text)))
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return " ".join(text.lower().split())


def problem_id(prompt: str, gold: str) -> str:
    """Content hash (16 hex digits) of a problem: equal for equal prompt and gold answer, whatever the source."""
    return hashlib.sha256(f"{prompt}\0{gold}".encode()).hexdigest()[:16]


def prompt_hash(normalised: str, seed: int) -> int:
    """64-bit hash of a normalised prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{normalised}".encode()).digest()[:8])


def is_held_out(prompt: str, seed: int, share: float) -> bool:
    """Whether a prompt belongs to the evaluation split.

    A function of the normalised prompt alone, so every stage that makes text of its own (the pre-training corpus) knows
    what to leave out without reading what another stage wrote.
    """
    return prompt_hash(normalise(prompt), seed) < share * 2**64


def difficulty_name(difficulty: float) -> str:
    """A level of difficulty in the name of a figure: `2`, `1.5`, `1e06`; MLflow takes no plus sign."""
    return f"{difficulty:.15g}".replace("+", "")


def schema(record: type) -> dict[str, pl.DataType]:
    """Polars schema of a record's table."""
    hints = get_type_hints(record)
    return {field.name: _column_type(hints[field.name]) for field in fields(record)}


def _column_type(hint: object) -> pl.DataType:
    arguments = [argument for argument in get_args(hint) if argument is not type(None)] or [hint]
    kind = type(arguments[0]) if get_args(hint) and isinstance(arguments[0], str) else arguments[0]
    return {str: pl.String(), int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean()}[kind]


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table to `path` (parquet) in one atomic step."""
    with atomic_file(path) as temporary:
        table.write_parquet(temporary, compression="zstd", statistics=False)


def read_table(path: Path, record: type) -> pl.DataFrame:
    """Read a table of `record`s. Raises InputError where the file is missing, broken or of another schema."""
    if not path.is_file():
        raise InputError(f"{path}: no such table; run the stage that writes it")
    try:
        table = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: not a readable parquet file: {error}") from error
    if dict(table.schema) != schema(record):
        raise InputError(f"{path}: columns {dict(table.schema)} are not those of {record.__name__}: {schema(record)}")
    return table
