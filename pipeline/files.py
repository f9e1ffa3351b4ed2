"""Writes that are whole or absent, and digests of what was written.

Every write goes to a temporary sibling, is flushed to the disk and takes its name by one rename: a kill at any moment
leaves the old content or the new one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it takes the place of `path` when the block ends without an error.

    The name of the temporary folder is always the same, so that what a killed attempt left goes with the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            flush(entry)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any, *, sort: bool = True) -> None:
    """Write JSON, the same bytes for the same content. `sort=False` keeps the order of keys where it has a meaning."""
    text = json.dumps(content, indent=2, sort_keys=sort, ensure_ascii=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file, or of a folder's relative names and contents; byte code does not count."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    entries = sorted(entry for entry in path.rglob("*") if entry.is_file() and "__pycache__" not in entry.parts)
    return listing_digest((entry.relative_to(path).as_posix(), digest(entry)) for entry in entries)


def listing_digest(entries: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) of names and what tells their contents apart, in the given order."""
    return hashlib.sha256("".join(f"{name}\0{content}\n" for name, content in entries).encode()).hexdigest()
