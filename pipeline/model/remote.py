"""Bring a checkpoint here: a folder, an `s3://` prefix or a hub id, always pinned by its digest.

Only the files that a checkpoint is made of travel and count; code beside the weights is neither fetched nor run.
"""

import shutil
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import atomic_folder, digest, listing_digest
from pipeline.store import open_store

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
TIMEOUT_S = 30.0


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of a checkpoint's files; `digest` beside a `source` in params is this."""
    files = sorted({file for pattern in PATTERNS for file in folder.glob(pattern)})
    if not files:
        raise InputError(f"{folder}: holds none of {', '.join(PATTERNS)}: not a checkpoint")
    return listing_digest((file.name, digest(file)) for file in files)


def fetch(source: str, revision: str | None, expected: str, to: Path) -> Path:
    """Return a local folder with the checkpoint's files. Raises InputError where its digest is not `expected`.

    A local folder is used where it is; anything else is downloaded to `to`, once.
    """
    if Path(source).is_dir():
        folder = Path(source)
    else:
        folder = to
        if not to.is_dir():
            with atomic_folder(to) as temporary:
                _download(source, revision, temporary)
    found = checkpoint_digest(folder)
    if found != expected:
        if folder == to:  # ask again next time rather than trip over the same bytes
            shutil.rmtree(to)
        raise InputError(f"base.digest: {expected}: the checkpoint at {source} has digest {found}")
    return folder


def _download(source: str, revision: str | None, to: Path) -> None:
    if source.startswith("s3://"):
        store = open_store(source)
        for key in store.list():
            if "/" not in key and any(Path(key).match(pattern) for pattern in PATTERNS):
                store.download(key, to / key)
        return
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(
            source, revision=revision, local_dir=to, allow_patterns=list(PATTERNS), etag_timeout=TIMEOUT_S
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(f"base.source: {source}: neither a folder nor to be had from the hub: {error}") from error
    shutil.rmtree(to / ".cache", ignore_errors=True)
