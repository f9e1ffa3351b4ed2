"""Whatever a source throws at curation: no traceback, the right reason, and no row lost."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.data.curate import curate
from pipeline.errors import InputError
from pipeline.params import Curation

FIRST = b'{"prompt": "Ann has 3 apples and buys 4 more. How many does she have?", "gold": "7"}'
LAST = b'{"prompt": "What is the product of 12 and 11, written in decimal?", "gold": "132"}'


def row(**columns: Any) -> bytes:
    return json.dumps(
        {"prompt": "What is the sum of 20 and 30, plus the 7 that Ben has?", "gold": "57", **columns}
    ).encode()


def curated(folder: Path, options: dict[str, Any] | None = None, **source: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Problems and quarantine of one source in `folder`."""
    described = {"name": "rows", "kind": "jsonl", "task": "word", "verifier": "numeric", "path": "rows.jsonl"} | source
    sections = Curation.model_validate({"sources": [described], **(options or {})})
    output = folder / "output"
    output.mkdir(exist_ok=True)
    funnel = curate(sections, seed=0, held_out=0.1, root=folder, folder=output)
    problems, quarantine = (pl.read_parquet(output / f"{name}.parquet") for name in ("problems", "quarantine"))
    assert funnel.read.total() == problems.height + quarantine.height
    return problems, quarantine


BROKEN_LINES: dict[str, tuple[bytes, str, str]] = {
    "truncated JSON": (b'{"prompt": "What is', "unreadable", "not JSON"),
    "two objects on a line": (b"{} {}", "unreadable", "not JSON"),
    "NUL byte": (b'{"prompt": "a\0b", "gold": "1"}', "unreadable", "NUL"),
    "escaped NUL": (row(prompt="What is 1\0?"), "unreadable", "control"),
    "escape sequence": (row(prompt="What is \x1b[31m 3+4?"), "unreadable", "control"),
    "bad UTF-8": (b'{"prompt": "caf\xe9", "gold": "1"}', "unreadable", "UTF-8"),
    "UTF-8 cut in two": (b'{"prompt": "\xe4\xb8', "unreadable", "UTF-8"),
    "lone surrogate": (rb'{"prompt": "\ud800", "gold": "1"}', "unreadable", "surrogate"),
    "list instead of object": (b"[1, 2]", "unreadable", "list"),
    "bare number": (b"12", "unreadable", "int"),
    "null": (b"null", "unreadable", "NoneType"),
    "depth bomb": (b'{"prompt": ' + b"[" * 100_000, "unreadable", "depth"),
    "NaN": (b'{"prompt": "x", "gold": NaN}', "unreadable", "not JSON"),
    "infinite number": (b'{"prompt": "x", "gold": 1e999}', "unreadable", "infinity"),
    "number beyond exact floats": (b'{"prompt": "x", "gold": 123456789012345678901234}', "unreadable", "gold"),
    "prompt is a number": (row(prompt=5), "unreadable", "prompt: 5"),
    "prompt is an object": (row(prompt={"text": "x"}), "unreadable", "prompt"),
    "gold is a list": (row(gold=["57"]), "unreadable", "gold"),
    "gold is a boolean": (row(gold=True), "unreadable", "gold"),
    "very long prompt": (row(prompt="why " * 2_000), "unreadable", "characters"),
    "very long gold": (row(gold="5" * 1_001), "unreadable", "characters"),
    "oversized line": (row(prompt="x" * 2_000_000), "unreadable", "1000000 bytes"),
    "prompt absent": (b'{"gold": "1"}', "missing field", "prompt"),
    "gold absent": (b'{"prompt": "What is the sum of 20 and 30?"}', "missing field", "gold"),
    "gold null": (row(gold=None), "missing field", "gold"),
    "gold empty": (row(gold=""), "missing field", "gold"),
    "prompt of blanks": (row(prompt=" \t\n"), "missing field", "prompt"),
    "prompt of zero-width characters": (row(prompt="\u200b\ufeff"), "missing field", "prompt"),
    "gold is no number": (row(gold="fifty-seven"), "gold unreadable", "fifty-seven"),
    "gold divides by zero": (row(gold="1/0"), "gold unreadable", "1/0"),
    "gold with a huge exponent": (row(gold="1e999999999"), "gold unreadable", "1e999999999"),
    "marker in the prompt": (row(prompt="What is 3+4? <think>7</think>"), "reserved marker", "<think>"),
    "end of turn in the prompt": (row(prompt="What is 3+4?<|assistant|>"), "reserved marker", "<|assistant|>"),
    "right-to-left text": (row(prompt="ما هو مجموع عشرين وثلاثين وسبعة؟"), "language", "ar"),
    "other script": (row(prompt="二十加三十再加七等于多少?"), "language", "zh"),
    "other language": (row(prompt="Combien font vingt plus trente plus sept, et pourquoi ?"), "language", "fr"),
    "duplicate in capitals": (FIRST.replace(b"How many does she", rb"HOW  MANY\u00a0DOES SHE"), "exact duplicate", "1"),
    "duplicate with a zero-width blank": (FIRST.replace(b"apples", "ap\u200bples".encode()), "exact duplicate", "1"),
    "duplicate with another gold": (FIRST.replace(b'"7"', b'"8"'), "exact duplicate", "another gold"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "reason", "detail"), BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_broken_line_is_quarantined(tmp_path: Path, line: bytes, reason: str, detail: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([FIRST, line, LAST]) + b"\n")
    problems, quarantine = curated(tmp_path)
    assert problems.height == 2
    assert quarantine.select("source", "file", "row", "reason").rows() == [("rows", "rows.jsonl", 2, reason)]
    assert detail in quarantine["detail"][0]
    assert quarantine["content"][0][:10] == line.decode(errors="replace")[:10]
    assert len(quarantine["content"][0]) <= 2_000


ACCEPTED_FILES: dict[str, tuple[bytes, int]] = {
    "byte order mark": (b"\xef\xbb\xbf" + FIRST + b"\n" + LAST, 2),
    "CRLF": (FIRST + b"\r\n" + LAST + b"\r\n", 2),
    "no newline at the end": (FIRST + b"\n" + LAST, 2),
    "blank lines are not rows": (b"\n" + FIRST + b"\n\n  \n" + LAST + b"\n\n", 2),
    "the last of a key given twice": (b'{"prompt": "x", "prompt": "What is 20 plus 30?", "gold": "50"}', 1),
    "number as gold": (b'{"prompt": "What is 20 plus 30?", "gold": 50}\n{"prompt": "And 1/2?", "gold": 0.5}', 2),
    "unknown keys": (b'{"prompt": "What is 20 plus 30?", "gold": "50", "more": {"a": [null]}}', 1),
    "emoji": ('{"prompt": "\U0001f34e\U0001f34e + \U0001f34e = ?", "gold": "3"}'.encode(), 1),
    "formula without words": (rb'{"prompt": "\\frac{1}{2} + \\sqrt{4} = ?", "gold": "2.5"}', 1),
    "prompts that differ in a number": (FIRST + b"\n" + FIRST.replace(b"buys 4", b"buys 5").replace(b'"7"', b'"8"'), 2),
    "prompts that differ in a number word": (
        row(prompt="Ann has three apples and then buys four more of them at the market, how many does she have?")
        + b"\n"
        + row(prompt="Ann has three apples and then buys five more of them at the market, how many does she have?"),
        2,
    ),
}


@pytest.mark.parametrize(("content", "rows"), ACCEPTED_FILES.values(), ids=ACCEPTED_FILES)
def test_unusual_but_sound_file_is_accepted(tmp_path: Path, content: bytes, rows: int) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    problems, quarantine = curated(tmp_path)
    assert (problems.height, quarantine.height) == (rows, 0)


def test_right_to_left_text_is_accepted_where_it_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(row(prompt="ما هو مجموع عشرين وثلاثين وسبعة؟"))
    problems, _ = curated(tmp_path, {"languages": ["en", "ar"]})
    assert problems["language"].to_list() == ["ar"]


WRONG_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no rows"),
    "only white space": (b" \n\t\r\n", "no rows"),
    "UTF-16": ('{"prompt": "x"}'.encode("utf-16"), "UTF-16"),
    "gzip": (gzip.compress(FIRST), "gzip"),
    "zip": (b"PK\x03\x04....", "zip"),
    "parquet": (b"PAR1....PAR1", "parquet"),
}


@pytest.mark.parametrize(("content", "rule"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_jsonl_file_is_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=rule):
        curated(tmp_path)


@pytest.mark.parametrize("path", ["absent.jsonl", "no/*.jsonl", "."])
def test_path_without_file_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match=r"no such file"):
        curated(tmp_path, path=path)


def _truncated(path: Path) -> None:
    pl.DataFrame({"prompt": ["x"] * 1000, "gold": ["1"] * 1000}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])


def _damaged(path: Path) -> None:
    pl.DataFrame({"prompt": [f"{i} plus {i}" for i in range(1000)], "gold": ["1"] * 1000}).write_parquet(path)
    content = bytearray(path.read_bytes())
    content[100:300] = b"\xff" * 200
    path.write_bytes(content)


WRONG_PARQUET: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "parquet"),
    "JSON lines": (lambda path: path.write_bytes(FIRST), "parquet"),
    "truncated": (_truncated, "parquet"),
    "damaged": (_damaged, "parquet"),
    "without the gold column": (lambda path: pl.DataFrame({"prompt": ["x"]}).write_parquet(path), r"\['gold'\]"),
    "without rows": (lambda path: pl.DataFrame({"prompt": [], "gold": []}).write_parquet(path), "no rows"),
}


@pytest.mark.parametrize(("write", "rule"), WRONG_PARQUET.values(), ids=WRONG_PARQUET)
def test_wrong_parquet_file_is_refused(tmp_path: Path, write: Callable[[Path], object], rule: str) -> None:
    write(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=rule):
        curated(tmp_path, kind="parquet", path="rows.parquet")


def test_parquet_values_of_the_wrong_type_are_quarantined(tmp_path: Path) -> None:
    table = pl.DataFrame({"prompt": [["a"], ["b"]], "gold": ["1", "2"]})
    table.write_parquet(tmp_path / "rows.parquet")
    problems, quarantine = curated(tmp_path, kind="parquet", path="rows.parquet")
    assert problems.is_empty()
    assert quarantine.select("row", "reason").rows() == [(1, "unreadable"), (2, "unreadable")]


@pytest.mark.parametrize("difficulty", [float("nan"), float("inf")])
def test_difficulty_that_is_no_finite_number_is_quarantined(tmp_path: Path, difficulty: float) -> None:
    table = pl.DataFrame({"prompt": ["What is 3 plus 4?"], "gold": [7], "level": [difficulty]})
    table.write_parquet(tmp_path / "rows.parquet")
    _, quarantine = curated(tmp_path, kind="parquet", path="rows.parquet", fields={"difficulty": "level"})
    assert quarantine["reason"].to_list() == ["unreadable"]
    assert "level" in quarantine["detail"][0]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("verifier", "guess", "unreadable"),
        ("verifier", "", "unreadable"),
        ("task", "\u4ee3\u6570", "unreadable"),
        ("task", "t" * 101, "unreadable"),
        ("task", "", "missing field"),
        ("language", "english", "language"),
    ],
)
def test_row_with_an_impossible_claim_is_quarantined(tmp_path: Path, field: str, value: str, reason: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(row(claim=value))
    _, quarantine = curated(tmp_path, fields={field: "claim"})
    assert quarantine["reason"].to_list() == [reason]
    assert value[:60] in quarantine["detail"][0]


def test_answer_that_the_pattern_does_not_find_is_missing(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(row(gold="so it is 57") + b"\n" + row(prompt="And 2+2?", gold="so\n#### 4"))
    problems, quarantine = curated(tmp_path, fields={"answer_pattern": "#### (.+)$"})
    assert problems["gold"].to_list() == ["4"]
    assert quarantine["reason"].to_list() == ["missing field"]


def test_pattern_that_would_backtrack_for_ever_does_not(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(row(gold="a" * 900 + "!"))
    _, quarantine = curated(tmp_path, fields={"answer_pattern": "^((?:a+)+)$"})
    assert quarantine["reason"].to_list() == ["missing field"]


def test_pattern_with_look_around_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(FIRST)
    with pytest.raises(InputError, match=r"fields\.answer_pattern.*look-around"):
        curated(tmp_path, fields={"answer_pattern": "(?<=x)(.+)"})


@pytest.mark.parametrize("gold", [r"\frac{1}{", "((((", "$$"])
def test_gold_that_math_verify_cannot_read_is_quarantined(tmp_path: Path, gold: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(row(gold=gold))
    problems, quarantine = curated(tmp_path, verifier="math")
    assert problems.is_empty()
    assert quarantine["reason"].to_list() == ["gold unreadable"]


def test_line_of_100_megabytes_takes_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("wb") as file:
        file.write(FIRST + b'\n{"prompt": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + LAST)
    tracemalloc.start()
    problems, quarantine = curated(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert problems.height == 2
    assert quarantine.select("row", "reason").rows() == [(2, "unreadable")]
    assert peak < 20_000_000
