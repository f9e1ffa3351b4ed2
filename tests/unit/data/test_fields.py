from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.data.fields import COLUMNS, check_patterns, to_table
from pipeline.data.sources import Raw
from pipeline.errors import InputError
from pipeline.params import FieldMap, Source

SOLUTION = "Natalia sold 48/2 = <<48/2=24>>24 in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"


def table(rows: list[dict[str, Any]], **source: Any) -> pl.DataFrame:
    described = {"kind": "jsonl", "path": "rows.jsonl", "name": "rows", "task": "word"} | source
    raw = [Raw("rows.jsonl", number, row, str(row), 1, "") for number, row in enumerate(rows, start=1)]
    return to_table(raw, TypeAdapter(Source).validate_python(described))


def test_gsm8k_row_is_taken_apart() -> None:
    fields = {
        "prompt": "question",
        "gold": "answer",
        "answer_pattern": r"\n#### (.+)$",
        "thinking_strip": "<<[^>]*>>",
        "difficulty_count": "<<",
    }
    row = table([{"question": " How many? ", "answer": SOLUTION}], fields=fields, verifier="numeric").row(0, named=True)
    assert row["prompt"] == "How many?"
    assert row["gold"] == "72"
    assert row["thinking"] == "Natalia sold 48/2 = 24 in May.\nIn all 48+24 = 72."
    assert row["difficulty"] == 2
    assert (row["verifier"], row["task"], row["language"]) == ("numeric", "word", None)


def test_columns_of_the_row_win_over_the_source() -> None:
    fields = {"verifier": "check", "task": "family", "language": "lang", "difficulty": "level", "thinking": "work"}
    row = {"prompt": "p", "gold": "g", "check": "exact", "family": "f", "lang": "de", "level": 3, "work": "w"}
    result = table([row], fields=fields).row(0, named=True)
    assert [result[name] for name in ("verifier", "task", "language", "difficulty", "thinking")] == [
        *("exact", "f", "de", 3.0, "w")
    ]


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        (0.5, "0.5"),
        (2**60, str(2**60)),
        (-3, "-3"),
        (Decimal("1200.00"), "1200"),
        (Decimal("-0.10"), "-0.1"),
        (Decimal("12345678901234567890123456789.5"), "12345678901234567890123456789.5"),
        (Decimal("1E-9"), "0.000000001"),
    ],
)
def test_number_as_gold_is_written_out(gold: float | Decimal, text: str) -> None:
    assert table([{"prompt": "p", "gold": gold}])["gold"].to_list() == [text]


def test_a_decimal_may_be_the_difficulty() -> None:
    result = table([{"prompt": "p", "gold": "g", "level": Decimal("2.50")}], fields={"difficulty": "level"})
    assert result.select("difficulty", "reason").row(0) == (2.5, None)


@pytest.mark.parametrize(
    ("label", "task"),
    [
        ("number theory: 1/a - b", "number theory: 1/a - b"),
        ("Counting & Probability", "Counting-Probability"),
        ("Géométrie", "Geometrie"),
        ("Algebra (II) / a+b", "Algebra-II/a-b"),
        ("a//(b)", "a//b"),
        ("../etc", "../etc"),
        ("代数", "代数"),
        ("", ""),
        (None, None),
    ],
)
def test_a_label_is_made_plain_as_far_as_it_can_be(label: str | None, task: str | None) -> None:
    rows = [{"prompt": "p", "gold": "g", "type": name} for name in ("sum", label)]
    assert table(rows, fields={"task": "type"})["task"].to_list() == ["sum", task]


def test_table_has_always_the_same_columns() -> None:
    assert dict(table([{}, {"prompt": 1}]).schema) == COLUMNS


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"answer_pattern": "#### .+"}, "exactly one group, has 0"),
        ({"answer_pattern": "(a)(b)"}, "exactly one group, has 2"),
        ({"thinking_strip": "(["}, "no regular expression"),
        ({"difficulty": "level", "difficulty_count": "<<"}, "give one of them"),
        ({"thinking": "work", "answer_pattern": "(.+)"}, "give one of them"),
    ],
)
def test_impossible_field_map_is_refused(fields: dict[str, str], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        FieldMap.model_validate(fields)


def test_a_pattern_is_tried_as_it_will_be_used() -> None:
    described = {"kind": "jsonl", "name": "rows", "path": "rows", "task": "word", "verifier": "numeric"}
    source = TypeAdapter(Source).validate_python(
        {**described, "fields": {"answer_pattern": r"(?x)\#{4} (.+) # the answer"}}
    )
    with pytest.raises(InputError, match=r"curation\.sources\.rows\.fields\.answer_pattern"):
        check_patterns(source)
