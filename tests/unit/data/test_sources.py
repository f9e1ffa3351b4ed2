"""Every kind of source as a stream of rows. What is broken in them is tested in tests/faults."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.data import sources
from pipeline.data.sources import Raw, data_root, listing_prefix, named_keys, read
from pipeline.errors import InputError
from pipeline.params import Source
from pipeline.store import open_store
from pipeline.store.local import LocalStore

ROWS = [{"prompt": f"What is {number} plus {number}?", "gold": str(2 * number)} for number in range(5)]


def rows_of(root: Path, **source: Any) -> list[Raw]:
    described = {"name": "rows", "task": "word"} | source if source["kind"] in ("jsonl", "parquet", "hub") else source
    parsed = TypeAdapter(Source).validate_python(described)
    return list(read(parsed, seed=1, root=root, downloads=root / "downloads", line_bytes=1_000))


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_reads_lines_with_their_place(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", ROWS)
    rows = rows_of(tmp_path, kind="jsonl", path="rows.jsonl")
    assert [row.columns for row in rows] == ROWS
    assert [(row.file, row.row) for row in rows] == [("rows.jsonl", number) for number in range(1, 6)]
    assert rows[0].content == json.dumps(ROWS[0])


def test_paths_count_from_the_folder_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("R1FLOW_DATA", raising=False)
    assert data_root(tmp_path) == tmp_path
    monkeypatch.setenv("R1FLOW_DATA", str(tmp_path / "store"))
    with pytest.raises(InputError, match=r"R1FLOW_DATA: .*store: no such folder"):
        data_root(tmp_path)
    write_lines(tmp_path / "store" / "rows.jsonl", ROWS)
    assert data_root(tmp_path) == tmp_path / "store"
    assert len(rows_of(data_root(tmp_path), kind="jsonl", path="rows.jsonl")) == 5


def test_reads_the_files_of_a_glob_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b", "deep/c", "a"):
        write_lines(tmp_path / f"{name}.jsonl", ROWS[:1])
    (tmp_path / "other.txt").write_text("not this one")
    rows = rows_of(tmp_path, kind="jsonl", path="**/*.jsonl")
    assert [row.file for row in rows] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert [row.file for row in rows_of(tmp_path, kind="jsonl", path=str(tmp_path / "?.jsonl"))] == [
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "b.jsonl"),
    ]


def test_a_file_that_a_glob_matches_twice_is_read_once(tmp_path: Path) -> None:
    write_lines(tmp_path / "a" / "b" / "rows.jsonl", ROWS)
    assert len(rows_of(tmp_path, kind="jsonl", path="**/**/*.jsonl")) == 5


def test_a_name_that_looks_like_a_glob_is_a_name_first(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows[1].jsonl", ROWS)
    assert len(rows_of(tmp_path, kind="jsonl", path="rows[1].jsonl")) == 5


def test_reads_only_the_columns_of_parquet_that_are_mapped(tmp_path: Path) -> None:
    pl.DataFrame(ROWS).with_columns(more=1).write_parquet(tmp_path / "rows.parquet", row_group_size=2)
    rows = rows_of(tmp_path, kind="parquet", path="rows.parquet")
    assert [row.columns for row in rows] == ROWS
    assert [row.row for row in rows] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("narrow", [np.float16, np.float32])
def test_narrow_floats_of_parquet_are_read_as_they_are_written(tmp_path: Path, narrow: type[np.floating[Any]]) -> None:
    gold = pa.array([narrow(0.1), None, narrow(2), narrow(-3.14), narrow(np.inf)])
    pq.write_table(pa.table({"prompt": ["p"] * 5, "gold": gold}), tmp_path / "rows.parquet")
    rows = rows_of(tmp_path, kind="parquet", path="rows.parquet")
    assert [row.columns["gold"] for row in rows] == [0.1, None, 2.0, -3.14, float("inf")]


@pytest.mark.parametrize(
    "odd",
    [
        pa.array([2**62], pa.timestamp("us")),
        pa.array([0], pa.timestamp("s", tz="Mars/Olympus")),
        pa.array([2**30], pa.date32()),
    ],
    ids=["late", "zone", "date"],
)
def test_parquet_with_values_that_python_lacks_is_refused(tmp_path: Path, odd: pa.Array) -> None:
    pq.write_table(pa.table({"prompt": odd, "gold": ["1"]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet: not a readable parquet file"):
        rows_of(tmp_path, kind="parquet", path="rows.parquet")


def test_reads_objects_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("day/1.jsonl", "day/2.jsonl", "day/2.jsonl.old"):
        write_lines(tmp_path / "bucket" / name, ROWS)
    found = LocalStore.list
    monkeypatch.setattr(LocalStore, "list", lambda store, prefix: [prefix, *found(store, prefix)])  # a console's folder
    monkeypatch.setattr(sources, "open_store", lambda uri: open_store(str(tmp_path / uri.removeprefix("s3://"))))
    files = {row.file for row in rows_of(tmp_path, kind="jsonl", path="s3://bucket/day/")}
    assert files == {f"s3://bucket/day/{name}" for name in ("1.jsonl", "2.jsonl", "2.jsonl.old")}
    files = {row.file for row in rows_of(tmp_path, kind="jsonl", path="s3://bucket/day/*.jsonl")}
    assert files == {f"s3://bucket/day/{name}" for name in ("1.jsonl", "2.jsonl")}
    files = {row.file for row in rows_of(tmp_path, kind="jsonl", path="s3://bucket/day/2.jsonl")}
    assert files == {"s3://bucket/day/2.jsonl"}
    with pytest.raises(InputError, match="nothing there"):
        rows_of(tmp_path, kind="jsonl", path="s3://bucket/night/")


BUCKET = [
    *("data/_SUCCESS", "data/_temporary/0.jsonl", "data/train/", "data/train/.a.crc", "data/train/_SUCCESS"),
    *("data/train/a.jsonl", "data/train/b/c.jsonl", "data/train_old/b.jsonl", "data/training.jsonl", "single.jsonl"),
]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("single.jsonl", ["single.jsonl"]),
        ("data/_SUCCESS", ["data/_SUCCESS"]),
        ("data/train", ["data/train/a.jsonl", "data/train/b/c.jsonl"]),
        ("data/train/", ["data/train/a.jsonl", "data/train/b/c.jsonl"]),
        ("data/train*", ["data/training.jsonl"]),
        ("data/train/*.jsonl", ["data/train/a.jsonl"]),
        ("data/train/?.jsonl", ["data/train/a.jsonl"]),
        ("data/train*/**/*.jsonl", ["data/train/a.jsonl", "data/train/b/c.jsonl", "data/train_old/b.jsonl"]),
        ("data/train/**", ["data/train/_SUCCESS", "data/train/a.jsonl", "data/train/b/c.jsonl"]),
        ("data/tr", []),
        ("data/*.parquet", []),
        (
            "",
            [
                "data/train/a.jsonl",
                "data/train/b/c.jsonl",
                "data/train_old/b.jsonl",
                "data/training.jsonl",
                "single.jsonl",
            ],
        ),
    ],
)
def test_an_address_names_an_object_or_a_glob_or_a_folder(key: str, names: list[str]) -> None:
    there = [name for name in BUCKET if name.startswith(listing_prefix(key))]
    assert named_keys(key, there) == names


def test_makes_generated_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, kind="generated", name="sums", problems=3, families={"sum": 1.0})
    assert len(rows) == 3
    assert {"prompt", "gold", "verifier", "task", "difficulty", "thinking", "language"} <= rows[0].columns.keys()


def test_a_generated_source_names_a_family() -> None:
    with pytest.raises(ValidationError, match="families"):
        TypeAdapter(Source).validate_python({"kind": "generated", "name": "sums", "problems": 3, "families": {}})


@pytest.mark.slow
def test_reads_a_folder_in_the_format_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pl.DataFrame(ROWS).with_columns(more=1).write_parquet(tmp_path / "data" / "train.parquet")
    assert [row.columns for row in rows_of(tmp_path, kind="hub", dataset="data")] == ROWS
    with pytest.raises(InputError, match=r"sources\.rows\.dataset: data: .*nope"):
        rows_of(tmp_path, kind="hub", dataset="data", rows="nope")
    with pytest.raises(InputError, match="question"):
        rows_of(tmp_path, kind="hub", dataset="data", fields={"prompt": "question"})
    (tmp_path / "narrow").mkdir()
    gold = pa.array([0.1, 2, None], pa.float32())
    pq.write_table(pa.table({"prompt": ["p"] * 3, "gold": gold}), tmp_path / "narrow" / "train.parquet")
    assert [row.columns["gold"] for row in rows_of(tmp_path, kind="hub", dataset="narrow")] == [0.1, 2.0, None]
    write_lines(tmp_path / "empty" / "train.jsonl", [])
    with pytest.raises(InputError, match=r"sources\.rows\.dataset: empty: has no rows"):
        rows_of(tmp_path, kind="hub", dataset="empty")
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("")
    with pytest.raises(InputError, match=r"sources\.rows\.dataset: scripted: .*scripts"):
        rows_of(tmp_path, kind="hub", dataset="scripted")
    write_lines(tmp_path / "broken" / "train.jsonl", ROWS)
    with (tmp_path / "broken" / "train.jsonl").open("a") as file:
        file.write('{"prompt": \n')
    with pytest.raises(InputError, match="JSON"):
        rows_of(tmp_path, kind="hub", dataset="broken")


@pytest.mark.slow
def test_makes_rows_of_the_reasoning_gym(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    gym = {"kind": "reasoning_gym", "name": "gym", "dataset": "chain_sum", "problems": 3}
    rows = rows_of(tmp_path, **gym)
    assert len(rows) == 3
    assert rows == rows_of(tmp_path, **gym)
    with pytest.raises(InputError, match="nope"):
        rows_of(tmp_path, **gym | {"dataset": "nope"})
    with pytest.raises(InputError, match="hardness"):
        rows_of(tmp_path, **gym, options={"hardness": 3})
