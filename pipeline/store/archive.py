"""Folders in a store: what they hold by content, what belongs together by a list, and which one counts by a pointer.

    objects/<SHA-256>     the content of a file, once for all folders that have it; verified when it is read
    manifests/<SHA-256>   a folder: names → SHA-256 and size; written when all of its objects are there
    pointers/<name>       the manifest that counts and the one before; moved by compare-and-swap

So a folder that a manifest names is whole, a pointer leads to a whole folder, and a kill at any moment leaves the old
one or the new one, and perhaps objects that nothing references (collect.py).
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import InputError
from pipeline.files import atomic_folder, digest
from pipeline.store.interface import Entry, Store

OBJECTS, MANIFESTS, POINTERS = "objects/", "manifests/", "pointers/"
GRACE_SECONDS = 24 * 3600.0
"""Younger than this, nothing is collected: a pointer to it may be on its way."""
REFRESH_SECONDS = GRACE_SECONDS / 4
"""An object that is there and older is written again, lest it is collected before the pointer to it is there."""
ATTEMPTS = 3  # at reading an object whose bytes are not those of its name


@dataclass(frozen=True, slots=True)
class File:
    """A file of a folder."""

    sha256: str
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where a pointer stands."""

    manifest: str
    before: str | None  # the manifest before
    moves: int  # counted, so that no two states are alike
    version: str  # of the object in the store

    @property
    def manifests(self) -> list[str]:
        return [one for one in (self.manifest, self.before) if one is not None]


class Archive:
    """The folders below one prefix of a store."""

    def __init__(self, store: Store, prefix: str = "") -> None:
        """`prefix` ends with `/` or is empty."""
        self._store, self._prefix = store, prefix

    def __str__(self) -> str:
        return f"{self._store}{'' if str(self._store).endswith('/') else '/'}{self._prefix}"

    def put(self, files: Mapping[str, Path], held: Collection[str] = ()) -> str:
        """Copy files, by their names in the folder, and then its manifest, which is returned.

        What is there already is not sent again, however old where its SHA-256 is `held` by a pointer. Nothing
        references the folder until a pointer is moved to it.
        """
        named = {name: File(digest(path), path.stat().st_size) for name, path in sorted(files.items())}
        for name, file in named.items():
            key = self._key(OBJECTS, file.sha256)
            there = self._store.stat(key)
            if there is None or there.size != file.size or (file.sha256 not in held and _ages(there)):
                self._store.upload(files[name], key)
        return self._put_manifest(named)

    def _put_manifest(self, named: Mapping[str, File]) -> str:
        data = _json({name: asdict(file) for name, file in named.items()})
        manifest = hashlib.sha256(data).hexdigest()
        key = self._key(MANIFESTS, manifest)
        if not self._store.create(key, data) or ((there := self._store.stat(key)) is not None and _ages(there)):
            found = self._store.read(key)  # damaged, or to be made young again
            if found is None or not self._store.replace(key, data, found.version):
                raise ConnectionError(f"{self}{MANIFESTS}{manifest}: changed while it was written")
        return manifest

    def manifest(self, manifest: str) -> dict[str, File]:
        """The files of a folder. Raises InputError where the manifest is missing or damaged."""
        where = f"{self}{MANIFESTS}{manifest}"
        found = self._store.read(self._key(MANIFESTS, manifest))
        if found is None:
            raise InputError(f"{where}: missing")
        if hashlib.sha256(found.data).hexdigest() != manifest:
            raise InputError(f"{where}: damaged: its content does not have the SHA-256 that it is named by")
        try:
            files = {str(name): File(file["sha256"], file["size"]) for name, file in json.loads(found.data).items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: no manifest: {error}") from error
        for name in files:
            if PurePosixPath(name).is_absolute() or not name or ".." in PurePosixPath(name).parts:
                raise InputError(f"{where}: {name!r}: a name must not lead out of the folder")
        return files

    def fetch(self, manifest: str, to: Path) -> None:
        """Copy a folder here, verified, in one atomic step. Raises InputError where something is missing or damaged."""
        with atomic_folder(to) as temporary:
            for name, file in self.manifest(manifest).items():
                self._download(file, temporary / name)

    def _download(self, file: File, to: Path) -> None:
        key, found = self._key(OBJECTS, file.sha256), ""
        for _ in range(ATTEMPTS):
            self._store.download(key, to)
            if (found := digest(to)) == file.sha256:
                return
        raise InputError(f"{self}{OBJECTS}{file.sha256}: damaged: its content has SHA-256 {found}")

    def pointer(self, name: str) -> Pointer | None:
        """Where a pointer stands; None where there is none."""
        found = self._store.read(self._key(POINTERS, name))
        if found is None:
            return None
        try:
            content: dict[str, Any] = json.loads(found.data)
            return Pointer(content["manifest"], content["before"], content["moves"], found.version)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self}{POINTERS}{name}: no pointer: {error}") from error

    def move(self, name: str, manifest: str, over: Pointer | None) -> bool:
        """Let a pointer that stands at `over` (None: that is not there) lead to `manifest`.

        False where it has been moved by someone else since it was read; it then stays where it is.
        """
        before, moves = (None, 0) if over is None else (over.manifest, over.moves)
        data = _json({"manifest": manifest, "before": before, "moves": moves + 1})
        key = self._key(POINTERS, name)
        return self._store.create(key, data) if over is None else self._store.replace(key, data, over.version)

    def drop(self, manifest: str, keep: Iterable[str]) -> None:
        """Remove a folder and the objects that the folders `keep` do not have; nothing happens where there is none.

        For who alone knows what references objects here: elsewhere it is collect.py that removes.
        """
        if self._store.stat(self._key(MANIFESTS, manifest)) is None:
            return
        kept = {file.sha256 for one in keep for file in self.manifest(one).values()}
        gone = {file.sha256 for file in self.manifest(manifest).values()} - kept
        self._store.delete(self._key(MANIFESTS, manifest))
        for sha256 in sorted(gone):
            self._store.delete(self._key(OBJECTS, sha256))

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}{kind}{name}"


def _ages(entry: Entry) -> bool:
    return time.time() - entry.modified > REFRESH_SECONDS


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
