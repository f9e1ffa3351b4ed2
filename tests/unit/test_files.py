"""A write is whole or absent, whatever happens in the middle."""

import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pipeline.files import atomic_file, atomic_folder, digest, write_json


class BreakError(Exception):
    pass


def _break(write: AbstractContextManager[Path], part: str) -> None:
    with write as path:
        (path / part).write_text("new")
        raise BreakError


def test_an_error_in_the_middle_leaves_the_old_content(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    folder.mkdir()
    (folder / "part").write_text("old")
    for write, target, part in ((atomic_file, file, ""), (atomic_folder, folder, "part")):
        with pytest.raises(BreakError):
            _break(write(target), part)
    assert file.read_text() == (folder / "part").read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_finished_write_takes_the_place_of_the_old(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    for content in ("old", "new"):
        with atomic_folder(folder) as path:
            (path / content).write_text(content)
    assert [entry.name for entry in folder.iterdir()] == ["new"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as path:
    (path / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_in_the_middle_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "folder")], check=False, timeout=60)
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "folder").exists()
    with atomic_folder(tmp_path / "folder") as path:
        (path / "other").write_text("whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"], "the remains go with the next attempt"
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["other"]


def test_same_content_same_json_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "é"})
    write_json(tmp_path / "b", {"a": "é", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_digest_sees_names_and_contents_but_not_byte_code(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(content)
        return digest(tmp_path / name)

    same = folder("one", a="1", b="2")
    assert folder("two", a="1", b="2") == same
    assert len({same, folder("three", a="1", c="2"), folder("four", a="1", b="3"), folder("five", a="12")}) == 4
    (tmp_path / "one" / "__pycache__").mkdir()
    (tmp_path / "one" / "__pycache__" / "a.pyc").write_text("x")
    assert digest(tmp_path / "one") == same
