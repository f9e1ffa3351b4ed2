"""The artifact store: a local folder or an S3 prefix, by the same few operations (interface.py).

What must be atomic is one request that the store itself decides: a key is created where nothing is (If-None-Match),
replaced where it still is what was read (If-Match). A request whose response was lost may have been carried out; sent
again it is refused, finds its own bytes there, and so has succeeded.
On these operations stand content-addressed folders with pointers to them (archive.py).
"""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.store.archive import Archive, Pointer
from pipeline.store.interface import Content, Entry, Store
from pipeline.store.local import LocalStore
from pipeline.store.s3 import LIMITS, Limits, S3Store

__all__ = ["Archive", "Content", "Entry", "Limits", "Pointer", "Store", "artifact_store", "open_store"]


def open_store(uri: str, limits: Limits = LIMITS) -> Store:
    """The store at `s3://bucket/prefix` or in a local folder. Nothing is asked of it yet."""
    if not uri.startswith("s3://"):
        return LocalStore(Path(uri))
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if "@" in bucket:
        raise InputError(
            "an address s3://… must not hold credentials: they come from the environment, ~/.aws or the machine's role"
        )
    if not bucket:
        raise InputError(f"{uri}: names no bucket; s3://bucket or s3://bucket/prefix is meant")
    return S3Store(bucket, f"{prefix.rstrip('/')}/" if prefix else "", limits)


def artifact_store(place: str, root: Path, limits: Limits = LIMITS) -> Store:
    """The store at `place` as params have it: s3://… or a folder, of the project `root` where it is relative.

    A folder of the project is made. One elsewhere must be there, as a file system that is not mounted is no store:
    else InputError.
    """
    if place.startswith("s3://"):
        return open_store(place, limits)
    folder = root / place
    if not Path(place).is_absolute():
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise InputError(f"{place}: no such folder; an artifact store outside of the project must be there")
    return LocalStore(folder)
