"""Folders by content, and pointers to them."""

import os
import time
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.store import Archive, Store
from pipeline.store import archive as module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With two files of the same content."""
    for name, content in {"a": "same", "deep/b": "same", "c": "other"}.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "folder"


def files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, str]:
    return {name: path.read_text() for name, path in files(folder).items()}


def test_a_folder_comes_back_and_equal_files_are_kept_once(store: Store, folder: Path, tmp_path: Path) -> None:
    archive = Archive(store, "work/")
    manifest = archive.put(files(folder))
    assert archive.put(files(folder)) == manifest
    archive.fetch(manifest, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(folder)
    assert len(list(store.list("work/objects/"))) == 2
    assert list(store.list("work/manifests/")) == [f"work/manifests/{manifest}"]


def damaged(store: Store, key: str, data: bytes | None) -> None:
    found = store.read(key)
    assert found is not None
    if data is None:
        store.delete(key)
    else:
        assert store.replace(key, data, found.version)


@pytest.mark.parametrize("kind", ["objects/", "manifests/"])
@pytest.mark.parametrize("data", [b"evil", None], ids=["changed", "gone"])
def test_what_is_damaged_is_not_taken(
    store: Store, folder: Path, tmp_path: Path, kind: str, data: bytes | None
) -> None:
    archive = Archive(store)
    manifest = archive.put(files(folder))
    damaged(store, next(store.list(kind)), data)
    with pytest.raises(InputError, match=kind):
        archive.fetch(manifest, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_name_that_leads_out_is_refused(store: Store, folder: Path, tmp_path: Path) -> None:
    archive = Archive(store)
    manifest = archive.put({"../outside": folder / "a"})
    with pytest.raises(InputError, match="must not lead out"):
        archive.fetch(manifest, tmp_path / "copy")


def test_a_pointer_moves_from_where_it_was_read(store: Store) -> None:
    archive = Archive(store)
    assert archive.pointer("releases/one") is None
    assert archive.move("releases/one", "a" * 64, over=None)
    assert not archive.move("releases/one", "b" * 64, over=None)
    first = archive.pointer("releases/one")
    assert first is not None
    assert first.manifests == ["a" * 64]
    assert archive.move("releases/one", "b" * 64, over=first)
    assert not archive.move("releases/one", "c" * 64, over=first)
    second = archive.pointer("releases/one")
    assert second is not None
    assert second.manifests == ["b" * 64, "a" * 64]
    assert archive.move("releases/one", "a" * 64, over=second)
    assert not archive.move("releases/one", "d" * 64, over=first)  # the same folder again is another state


def test_no_pointer_is_refused(store: Store) -> None:
    store.create("pointers/odd", b"[]")
    with pytest.raises(InputError, match="pointers/odd: no pointer"):
        Archive(store).pointer("odd")


def test_what_was_left_half_or_long_ago_is_written_again(folder: Path, tmp_path: Path) -> None:
    from pipeline.store import open_store

    root = tmp_path / "store"
    root.mkdir()
    archive = Archive(open_store(str(root)))
    manifest = archive.put(files(folder))
    old = time.time() - module.REFRESH_SECONDS - 60
    for path in files(root).values():
        os.utime(path, (old, old))
    half = next((root / "objects").iterdir())
    half.write_text("sa")
    assert archive.put(files(folder)) == manifest
    assert all(path.stat().st_mtime > old + 60 for name, path in files(root).items() if not name.startswith("."))
    archive.fetch(manifest, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(folder)


def test_a_dropped_folder_leaves_what_others_have(store: Store, folder: Path, tmp_path: Path) -> None:
    archive = Archive(store)
    old = archive.put(files(folder))
    (folder / "c").write_text("new")
    new = archive.put(files(folder))
    archive.drop(old, keep=[new])
    archive.drop(old, keep=[new])
    archive.fetch(new, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(folder)
    assert len(list(store.list("objects/"))) == 2
    assert list(store.list("manifests/")) == [f"manifests/{new}"]
