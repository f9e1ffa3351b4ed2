"""What a store can do. Keys are relative to the store's own folder or prefix, with `/` between their parts.

Every operation raises InputError for what the user can mend (no bucket, no rights, no credentials) and ConnectionError
for what may pass (no answer, an answer cut off, a server that is busy), both after the store's own retries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a store."""

    key: str
    size: int  # bytes
    modified: float  # Unix time, by the store's clock


@dataclass(frozen=True, slots=True)
class Content:
    """A small object as it was read."""

    data: bytes
    version: str  # what `replace` compares with


class Store(Protocol):
    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that begin with `prefix`, sorted. Names with a part that begins with a dot are not meant for others."""
        ...

    def tags(self, prefix: str = "") -> dict[str, str]:
        """For each key that begins with `prefix`, sorted, a text that changes with the object's content."""
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose keys begin with `prefix`, sorted."""
        ...

    def stat(self, key: str) -> Entry | None:
        """The object at `key`, or None."""
        ...

    def download(self, key: str, to: Path) -> None:
        """Copy an object to the file `to` in one atomic step. Raises InputError where there is none."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Copy the file `path` to `key`, over what may be there."""
        ...

    def read(self, key: str) -> Content | None:
        """A small object, or None."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object in one atomic step; False where another one is there, which then stays.

        Where the very same bytes are there it is True: an attempt whose response was lost has written them.
        """
        ...

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Write a small object over the one that was read as `version`, in one atomic step.

        False where another one is there by then, which then stays; the very same bytes count as written by this call.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        ...
