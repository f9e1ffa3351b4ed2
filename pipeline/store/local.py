"""A store in a local folder. Objects are files; who replaces one holds the folder's lock meanwhile."""

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import atomic_file, digest, flush
from pipeline.store.interface import Content, Entry

LOCK = ".lock"


class LocalStore:
    """Objects are files below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def list(self, prefix: str = "") -> Iterator[str]:
        yield from (entry.key for entry in self.entries(prefix))

    def tags(self, prefix: str = "") -> dict[str, str]:
        return {key: digest(self._folder / key) for key in self.list(prefix)}

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        if not self._folder.is_dir():
            raise InputError(f"{self._folder}: no such folder")
        above = self._folder / prefix.rpartition("/")[0]
        names = (path.relative_to(self._folder) for path in above.rglob("*"))
        keys = (name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
        for key in sorted(key for key in keys if key.startswith(prefix)):
            if (entry := self.stat(key)) is not None:
                yield entry

    def stat(self, key: str) -> Entry | None:
        path = self._folder / key
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(key, found.st_size, found.st_mtime) if path.is_file() else None

    def download(self, key: str, to: Path) -> None:
        source = self._folder / key
        if not source.is_file():
            raise InputError(f"{source}: no such file")
        with atomic_file(to) as temporary:
            shutil.copyfile(source, temporary)

    def upload(self, path: Path, key: str) -> None:
        with atomic_file(self._folder / key) as temporary:
            shutil.copyfile(path, temporary)

    def read(self, key: str) -> Content | None:
        try:
            data = (self._folder / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Content(data, hashlib.sha256(data).hexdigest())

    def create(self, key: str, data: bytes) -> bool:
        target = self._folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}-{threading.get_ident()}")
        try:
            temporary.write_bytes(data)
            flush(temporary)
            os.link(temporary, target)  # unlike a rename it fails where the name is taken
            flush(target.parent)
        except FileExistsError:
            return target.read_bytes() == data
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def replace(self, key: str, data: bytes, version: str) -> bool:
        with self._locked():
            found = self.read(key)
            if found is None or found.version != version:
                return found is not None and found.data == data
            with atomic_file(self._folder / key) as temporary:
                temporary.write_bytes(data)
        return True

    def delete(self, key: str) -> None:
        with self._locked():
            (self._folder / key).unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
