"""A checkpoint comes from where params say, whole, without code, and only under its digest."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.model import remote
from pipeline.model.remote import checkpoint_digest, fetch
from pipeline.store import open_store


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "run" / "model"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(name)
    return folder


def test_a_folder_is_used_where_it_is(checkpoint: Path, tmp_path: Path) -> None:
    assert fetch(str(checkpoint), None, checkpoint_digest(checkpoint), tmp_path / "to") == checkpoint
    assert not (tmp_path / "to").exists()


def test_code_and_other_files_do_not_count(checkpoint: Path) -> None:
    before = checkpoint_digest(checkpoint)
    for name in ("modeling.py", "pytorch_model.bin", "README.md"):
        (checkpoint / name).write_text("other")
    assert checkpoint_digest(checkpoint) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "more.json"])
def test_every_file_of_a_checkpoint_counts(name: str, checkpoint: Path) -> None:
    before = checkpoint_digest(checkpoint)
    (checkpoint / name).write_text("changed")
    assert checkpoint_digest(checkpoint) != before


def test_objects_of_a_store_are_fetched_once_and_without_code(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "modeling.py").write_text("raise SystemExit")
    asked = []

    def open_local(uri: str) -> object:
        asked.append(uri)
        return open_store(str(tmp_path / "store" / uri.removeprefix("s3://")))

    monkeypatch.setattr(remote, "open_store", open_local)
    for _ in range(2):
        folder = fetch("s3://run/model", None, checkpoint_digest(checkpoint), tmp_path / "to")
    assert asked == ["s3://run/model"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_another_digest_is_refused_and_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"base.digest: {'0' * 64}: .* has digest {checkpoint_digest(checkpoint)}"):
        fetch(str(checkpoint), None, "0" * 64, tmp_path / "to")


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a checkpoint"):
        checkpoint_digest(tmp_path)


@pytest.mark.parametrize("source", ["not a hub id!", "nobody/nothing"])
def test_what_cannot_be_had_from_the_hub_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"base.source: {source}: neither a folder nor to be had from the hub"):
        fetch(source, None, "0" * 64, tmp_path / "to")
    assert not (tmp_path / "to").exists()
