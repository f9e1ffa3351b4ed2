"""What nothing references goes, and only that."""

import time
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.store import Archive, Store
from pipeline.store.archive import GRACE_SECONDS
from pipeline.store.collect import holdings, remove, unreferenced

CHECKPOINTS = "checkpoints/base/0123/"
LATER = GRACE_SECONDS + 60


def put(archive: Archive, tmp_path: Path, *contents: str, pointer: str | None = None) -> str:
    files = {}
    for number, content in enumerate(contents):
        path = tmp_path / f"{content}-file"
        path.write_text(content)
        files[f"file-{number}"] = path
    manifest = archive.put(files)
    if pointer is not None:
        assert archive.move(pointer, manifest, over=archive.pointer(pointer))
    return manifest


def loose(store: Store, seconds: float = LATER, unused_days: float = 30.0) -> set[str]:
    return {entry.key for entry in unreferenced(store, unused_days=unused_days, now=time.time() + seconds)}


def test_what_no_pointer_leads_to_goes(store: Store, tmp_path: Path) -> None:
    archive = Archive(store)
    store.create("ledger/00000001.json", b"{}")
    old = put(archive, tmp_path, "shared", "old", pointer="releases/one")
    put(archive, tmp_path, "shared", "before", pointer="releases/one")
    newest = put(archive, tmp_path, "shared", "new", pointer="releases/one")
    found = loose(store)
    assert f"manifests/{old}" in found
    assert len(found) == 2  # and the object that it alone has
    assert loose(store, 0) == set()  # it is young
    assert {entry.key for entry in remove(store, unreferenced(store, unused_days=30, now=time.time() + LATER))} == found
    assert loose(store) == set()
    archive.fetch(newest, tmp_path / "copy")
    assert list(store.list("ledger/")) == ["ledger/00000001.json"]


def test_a_copy_under_way_is_left_alone(store: Store, tmp_path: Path) -> None:
    put(Archive(store, CHECKPOINTS), tmp_path, "one", "two")  # no pointer yet
    assert loose(store, GRACE_SECONDS - 60) == set()
    assert len(loose(store)) == 3


def test_checkpoints_of_work_that_rests_go_after_a_time(store: Store, tmp_path: Path) -> None:
    put(Archive(store, CHECKPOINTS), tmp_path, "one", pointer="newest")
    put(Archive(store), tmp_path, "one", pointer="releases/one")
    assert loose(store, 29 * 86_400) == set()
    found = unreferenced(store, unused_days=30, now=time.time() + 31 * 86_400)
    assert [entry.key.removeprefix(CHECKPOINTS).split("/")[0] for entry in found] == [
        "pointers",
        "manifests",
        "objects",
    ]
    assert list(remove(store, found)) == found
    assert [holding.prefix for holding in holdings(store)] == [""]


def test_work_that_goes_on_meanwhile_keeps_everything(tmp_path: Path) -> None:
    import os

    from pipeline.store import open_store

    (tmp_path / "store").mkdir()
    store = open_store(str(tmp_path / "store"))
    archive = Archive(store, CHECKPOINTS)
    put(archive, tmp_path, "one", pointer="newest")
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (1, 1))
    found = unreferenced(store, unused_days=30)
    assert len(found) == 3
    newest = put(archive, tmp_path, "two", pointer="newest")
    assert list(remove(store, found)) == []
    archive.fetch(newest, tmp_path / "copy")


def test_nothing_goes_where_a_manifest_cannot_be_read(store: Store, tmp_path: Path) -> None:
    manifest = put(Archive(store), tmp_path, "one", pointer="releases/one")
    store.delete(f"manifests/{manifest}")
    with pytest.raises(InputError, match="missing"):
        loose(store)
