"""Releases out of the registry on this machine: runs/serving/models/<digest>/, each one whole or not there."""

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import atomic_folder
from pipeline.release.record import verify_checksums
from pipeline.running import serving_folder
from pipeline.tracking import Aliases, Version

DIGEST = re.compile("[0-9a-f]{64}")


def fetch(aliases: Aliases, version: Version, root: Path) -> Path:
    """The version's files, down to the last byte those of the release that its tag `digest` names.

    Raises InputError where they are not, ConnectionError where they do not come.
    """
    if not DIGEST.fullmatch(version.digest):
        raise InputError(f"{version.model} version {version.number}: tag digest: {version.digest!r}: must be a SHA-256")
    folder = _folder(root) / version.digest
    if folder.is_dir():
        try:
            verify_checksums(folder, version.digest)
        except InputError:  # changed since: fetch it anew
            shutil.rmtree(folder)
        else:
            return folder
    with atomic_folder(folder) as temporary:
        aliases.download(version, temporary)
        try:
            verify_checksums(temporary, version.digest)
        except InputError as error:
            raise InputError(f"files: {str(error).replace(f'{temporary}/', '')}") from error
    return folder


def keep_only(root: Path, digests: Collection[str]) -> None:
    """Remove all other copies, and what a download that was killed has left."""
    if _folder(root).is_dir():
        for entry in _folder(root).iterdir():
            if entry.name not in digests:
                shutil.rmtree(entry)


def _folder(root: Path) -> Path:
    return serving_folder(root) / "models"
