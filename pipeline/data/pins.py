"""Sources from outside are pinned: params say which content is meant, so changed data makes the stage stale.

DVC cannot watch files that only params name. A digest in params it does see: whoever changes the data has to change
the digest, and with that the stage runs again. Nothing is read before every pin holds.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.data.sources import listing_prefix, local_files, named_keys
from pipeline.errors import InputError
from pipeline.files import digest, listing_digest
from pipeline.params import FileSource, HubSource, Source
from pipeline.store import open_store

_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_pins(sources: Iterable[Source], root: Path) -> None:
    """Raises InputError where a source is not pinned, or its content is not what the pin says."""
    for source in sources:
        key = f"curation.sources.{source.name}"
        match source:
            case FileSource():
                _compare(f"{key}.digest", source.digest, _digest_at(f"{key}.path", source.path, root), source.path)
            case HubSource() if (root / source.dataset).is_dir():
                _compare(f"{key}.digest", source.digest, folder_digest(root / source.dataset), source.dataset)
            case HubSource() if not _COMMIT.fullmatch(source.revision or ""):
                raise InputError(
                    f"{key}.revision: {source.revision}: must be a commit of {source.dataset} (40 hex digits), "
                    "so that the data cannot change under the same params"
                )


def path_digest(path: str, root: Path) -> str:
    """SHA-256 (hex) of what a path, a glob or an `s3://` prefix names.

    Of one file it is the digest of its content, of several that of their names and contents. Of objects in a store it
    is that of their keys, sizes and entity tags: nothing is downloaded.
    """
    if path.startswith("s3://"):
        bucket, _, key = path.removeprefix("s3://").partition("/")
        tags = open_store(f"s3://{bucket}").tags(listing_prefix(key))
        keys = named_keys(key, tags)
        if not keys:
            raise InputError(f"{path}: nothing there")
        return listing_digest((name, tags[name]) for name in keys)
    with permitted():
        files = local_files(path, root)
        if len(files) == 1:
            return digest(files[0][0])
        return listing_digest((name, digest(file)) for file, name in files)


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) of a data set's folder."""
    with permitted():
        return digest(folder)


@contextmanager
def permitted() -> Iterator[None]:
    """Raise InputError for a file or folder that may not be read."""
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{error.filename}: may not be read: {error.strerror}") from error


def _digest_at(key: str, path: str, root: Path) -> str:
    try:
        return path_digest(path, root)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def _compare(key: str, expected: str | None, found: str, what: str) -> None:
    if expected is None:
        raise InputError(f"{key}: missing; to pin the content of {what} as it is now, set it to {found}")
    if expected != found:
        raise InputError(f"{key}: {expected}: the content of {what} has digest {found}")
