"""Releases in the artifact store."""

from pathlib import Path

from pipeline.release.record import Release, release_folder, verify_checksums, write_checksums
from pipeline.release.stored import store_releases
from pipeline.store import Archive, open_store


def make(root: Path, name: str, content: str) -> Release:
    folder = release_folder(root, name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(content)
    digest, files = write_checksums(folder)
    return Release(name, digest, "teacher", None, name, {}, files, 1, 1, {}, {})


def test_a_release_comes_back_by_its_name_and_by_its_digest(tmp_path: Path) -> None:
    archive = Archive(open_store(str(tmp_path / "store")))
    first = make(tmp_path, "general_rl", "first")
    store_releases("store", tmp_path, (first, make(tmp_path, "small", "student")))
    second = make(tmp_path, "general_rl", "second")
    for _ in range(2):  # again, nothing moves
        store_releases("store", tmp_path, (second,))
    for pointer, release in {
        "releases/general_rl": second,
        f"bundles/{first.digest}": first,
        f"bundles/{second.digest}": second,
    }.items():
        found = archive.pointer(pointer)
        assert found is not None
        archive.fetch(found.manifest, tmp_path / "copy" / pointer)
        verify_checksums(tmp_path / "copy" / pointer, release.digest)
    newest = archive.pointer("releases/general_rl")
    assert newest is not None
    assert newest.moves == 2
    assert archive.pointer("releases/small") is not None
