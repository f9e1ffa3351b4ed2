"""Data from outside runs only under the pin of its content."""

import errno
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from pipeline.data import pins
from pipeline.data.pins import check_pins, path_digest
from pipeline.errors import InputError
from pipeline.params import Source
from pipeline.store import open_store


def _source(**options: Any) -> Source:
    return TypeAdapter(Source).validate_python({"name": "rows", "task": "word"} | options)  # type: ignore[no-any-return]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("path", ["a.jsonl", "*.jsonl", "s3://bucket/day/", "s3://bucket/day/a.jsonl"])
def test_a_pin_holds_until_the_content_changes(path: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = root / "bucket" / "day" / "a.jsonl"
    objects.parent.mkdir(parents=True)
    objects.write_text("a")
    monkeypatch.setattr(pins, "open_store", lambda uri: open_store(str(root / uri.removeprefix("s3://"))))
    pinned = _source(kind="jsonl", path=path, digest=path_digest(path, root))
    check_pins([pinned], root)
    for changed in (objects, root / "a.jsonl"):
        changed.write_text("changed")
    with pytest.raises(InputError, match=f"curation.sources.rows.digest: {pinned.digest}: the content of .* has"):
        check_pins([pinned], root)


def test_a_missing_pin_is_asked_for_with_its_value(root: Path) -> None:
    with pytest.raises(InputError, match=f"digest: missing; .* set it to {path_digest('a.jsonl', root)}"):
        check_pins([_source(kind="jsonl", path="a.jsonl")], root)


def test_the_pin_of_a_prefix_is_of_the_objects_that_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "open_store", lambda uri: open_store(str(root)))
    (root / "day").mkdir()
    (root / "day" / "1.jsonl").write_text("1")
    before = path_digest("s3://bucket/day", root)
    assert path_digest("s3://bucket/day/*.jsonl", root) == before
    for other in ("day/_SUCCESS", "days.jsonl"):
        (root / other).write_text("")
    assert path_digest("s3://bucket/day", root) == before
    (root / "day" / "2.jsonl").write_text("2")
    assert path_digest("s3://bucket/day", root) != before


@pytest.mark.parametrize(
    "source", [{"kind": "jsonl", "path": "a.jsonl"}, {"kind": "jsonl", "path": "*"}, {"kind": "hub", "dataset": "."}]
)
def test_what_may_not_be_read_is_named(source: dict[str, str], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pins, "digest", closed)
    with pytest.raises(InputError, match=rf"{root}.*: may not be read: Permission denied"):
        check_pins([_source(**source)], root)


def test_a_new_file_under_a_glob_is_a_change(root: Path) -> None:
    before = path_digest("*.jsonl", root)
    (root / "c.jsonl").write_text("c")
    assert path_digest("*.jsonl", root) != before


def test_a_missing_file_is_named_with_its_key(root: Path) -> None:
    with pytest.raises(InputError, match=r"curation\.sources\.rows\.path: nowhere\.jsonl: no such file"):
        check_pins([_source(kind="jsonl", path="nowhere.jsonl")], root)


@pytest.mark.parametrize("revision", [None, "main", "v1.0"])
def test_a_hub_data_set_needs_a_commit(revision: str | None, root: Path) -> None:
    with pytest.raises(InputError, match=r"curation\.sources\.rows\.revision: .* must be a commit"):
        check_pins([_source(kind="hub", dataset="owner/name", revision=revision)], root)
    check_pins([_source(kind="hub", dataset="owner/name", revision="0" * 40)], root)


def test_a_local_data_set_needs_a_digest(root: Path) -> None:
    (root / "data").mkdir()
    with pytest.raises(InputError, match=r"curation\.sources\.rows\.digest: missing"):
        check_pins([_source(kind="hub", dataset="data")], root)
