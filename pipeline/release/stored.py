"""Releases in the artifact store, under their digests, for whoever has no access to the registry's files.

    pointers/bundles/<digest>   the release of that digest, for as long as the pointer is there
    pointers/releases/<name>    the last one registered under that name, and the one before

Done again it finds what is there, so it may be killed and tried again at any moment.
"""

from pathlib import Path

from pipeline.release.record import Release, release_folder
from pipeline.store import Archive, artifact_store


def store_releases(place: str, root: Path, releases: tuple[Release, ...]) -> None:
    """Put releases of the project at `root`, verified before, into the store at `place`.

    Raises ConnectionError where it does not answer, InputError where it cannot be used.
    """
    archive = Archive(artifact_store(place, root))
    for release in releases:
        folder = release_folder(root, release.name)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        manifest = archive.put(files)
        for pointer in (f"bundles/{release.digest}", f"releases/{release.name}"):
            while (now := archive.pointer(pointer)) is None or now.manifest != manifest:
                archive.move(pointer, manifest, over=now)
