"""Checksums find every change of a release's folder; a record of another format, or cut off, is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.release.record import CHECKSUMS, read_record, verify_checksums, write_checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    return tmp_path


def flip(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(999) + b"\1")


def rewrite(folder: Path) -> None:
    flip(folder)
    write_checksums(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, r"model\.safetensors: has SHA-256 \w+: must be \w+ by checksums\.json"),
        (rewrite, r"checksums\.json: has SHA-256 \w+: must be the release's digest"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: missing, named in checksums\.json"),
        (lambda folder: (folder / "code.py").touch(), r"code\.py: not named in checksums\.json"),
        (lambda folder: (folder / CHECKSUMS).unlink(), r"checksums\.json: missing"),
    ],
)
def test_a_changed_folder_is_refused(folder: Path, change: Callable[[Path], None], message: str) -> None:
    value, files = write_checksums(folder)
    assert set(files) == {"config.json", "model.safetensors"}
    verify_checksums(folder, value)
    change(folder)
    with pytest.raises(InputError, match=message):
        verify_checksums(folder, value)


def test_a_record_that_is_not_there_or_of_another_format_or_cut_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"release\.json: missing; run stage deployment first"):
        read_record(tmp_path)
    path = tmp_path / "artifacts" / "deployment" / "release.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"format": 2}')
    with pytest.raises(InputError, match="format 2: must be 1; run stage deployment again"):
        read_record(tmp_path)
    path.write_text('{"format": 1, "rele')
    with pytest.raises(InputError, match=r"release\.json: is no JSON: .*; run stage deployment again"):
        read_record(tmp_path)
