"""Tables round-trip, refuse what they are not, and problems keep their side of the split."""

from dataclasses import asdict
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import records
from pipeline.errors import InputError
from pipeline.records import normalise

PROBLEM = records.Problem("0" * 16, "s", "sum", "1+1=?", "2", "numeric", "", None, "train")


@pytest.mark.parametrize(
    "record",
    [
        PROBLEM,
        records.Trace("0" * 16, "1+1", "2", "s"),
        records.PreferencePair("hi", "hello", "what", "s"),
        records.Quarantined("s", "a.jsonl", 3, "unreadable", "bad JSON", "{"),
        records.Sample(
            "base", "0" * 16, "sum", 0, "2", 1, True, False, "unparseable", "numeric 1", 1.0, "1+1=?", "", 1.0, None
        ),
    ],
)
def test_a_record_comes_back_as_it_went(record: object, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    table = pl.DataFrame([record], schema=records.schema(type(record)))
    records.write_table(table, path)
    assert records.read_table(path, type(record)).to_dicts() == [asdict(record)]  # type: ignore[call-overload]
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.parquet"]


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    table = pl.DataFrame([PROBLEM] * 1000, schema=records.schema(records.Problem))
    for name in ("a", "b"):
        records.write_table(table, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("content", "message"), [(None, "no such table"), (b"PAR1 no", "not a readable parquet")])
def test_a_missing_or_broken_table_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "problems.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        records.read_table(path, records.Problem)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "problems.parquet"
    pl.DataFrame({"id": [1]}).write_parquet(path)
    with pytest.raises(InputError, match="Problem"):
        records.read_table(path, records.Problem)


@given(st.text(), st.integers(0, 100))
def test_spelling_variants_of_a_prompt_stay_on_one_side(prompt: str, seed: int) -> None:
    variant = "  " + prompt.replace(" ", "  ") + "\n"
    assert records.is_held_out(prompt, seed, 0.5) == records.is_held_out(variant, seed, 0.5)


@pytest.mark.parametrize(
    ("text", "read"),
    [("2²", "2^2"), ("10⁻⁵", "10^−5"), ("x₁₂", "x_12"), ("5½", "5 1⁄2"), ("½", "1⁄2"), ("ﬁve", "five"), ("２２", "22")],
)
def test_what_is_raised_or_broken_stays_so(text: str, read: str) -> None:
    assert normalise(text) == read


def test_the_share_held_out_is_the_share_asked_for() -> None:
    held = sum(records.is_held_out(f"{a}+{b}=?", 0, 0.1) for a in range(100) for b in range(100))
    assert 900 < held < 1100


@given(st.floats(-1e300, 1e300))
def test_a_level_s_name_is_one_that_a_figure_may_have(difficulty: float) -> None:
    name = records.difficulty_name(difficulty)
    assert set(name) <= set("0123456789.e-")
    assert float(name) == pytest.approx(difficulty, rel=1e-14)


def test_levels_that_differ_by_one_have_names_of_their_own() -> None:
    assert [records.difficulty_name(level) for level in (2.0, 1234567.0, 1234568.0)] == ["2", "1234567", "1234568"]
