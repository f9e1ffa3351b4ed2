"""Checkpoints off the machine: what a resume needs of runs/<stage>/<key>/ is copied to the artifact store as well.

A process of its own watches the folder, `python -m pipeline.mirror PLACE STAGE KEY`, so that training neither waits for
the store nor can be brought down by it: it sees whole checkpoints only, because they take their names by a rename, and
copies links to them while training goes on and removes the old ones. One copy is under way at a time; of checkpoints
that came meanwhile the newest is next.

In the store the work has a prefix of its own, checkpoints/<stage>/<key>/ (pipeline/store/archive.py), whose pointer
leads to the newest copy and the one before. It only moves forward: of two machines that do the same work the one that
is behind leaves it alone. The key is the same on every machine, being a hash of params, code and inputs.
"""

import logging
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import digest
from pipeline.process import die_with_parent
from pipeline.store import Archive, Pointer, artifact_store
from pipeline.store.archive import File

POINTER = "newest"
ACCOUNT = "cost.json"
# In the order in which they are read: the account knows what was spent up to a checkpoint, or a little later.
COPIED = ("**/step-*/**/*", "candidates-*.parquet", "**/*.jsonl", ACCOUNT)
STEP = re.compile(r"(.*?)/?step-(\d+)/.+")
LINKS, RESTORED = ".mirror", ".restored"  # folders in the work's own, hidden from what reads it
POLL_SECONDS = 1.0
SETTLE_SECONDS = 5.0  # for which a checkpoint's account is awaited
LONGEST_PAUSE = 60.0  # seconds between two attempts while the store does not answer
STOPPED_SECONDS = 5.0  # for the last copy where a signal ended the stage, of the ten that it has
ENDED_SECONDS = 60.0  # and where it ended by itself
FAILED = 3  # exit status; 1 is Python's own

Progress = dict[str, int]
"""Part of the work → its newest checkpoint's step; of candidates, which are kept in parts, their number."""

logger = logging.getLogger(__name__)


def progress(names: Iterable[str]) -> Progress:
    """How far files have come, by their names."""
    reached: Progress = {}
    for name in names:
        if step := STEP.fullmatch(name):
            reached[step[1]] = max(reached.get(step[1], 0), int(step[2]))
        elif name.endswith(".parquet"):
            reached["candidates"] = reached.get("candidates", 0) + 1
    return reached


def is_ahead(one: Progress, other: Progress) -> bool:
    """Whether one has come further in some part, and the other in none."""
    parts = one.keys() | other.keys()
    further = [one.get(part, -1) - other.get(part, -1) for part in parts]
    return max(further, default=0) > 0 and min(further) >= 0


class Mirror:
    """Of the folder of one piece of work."""

    def __init__(self, archive: Archive, folder: Path) -> None:
        self._archive, self._folder = archive, folder
        self._copied = ""  # the manifest that was copied last
        self._seen: Progress = {}  # how far the work had come then

    def restore(self) -> Progress:
        """Bring what the store has here where it is ahead of what lies here, and say how far that has come.

        A damaged copy is passed over with a warning. Raises ConnectionError where the store does not answer, InputError
        where it cannot be used.
        """
        pointer = self._archive.pointer(POINTER)
        for manifest in pointer.manifests if pointer else []:
            try:
                files = self._archive.manifest(manifest)
                if not is_ahead(progress(files), self._reached(files)):
                    return {}
                self._archive.fetch(manifest, self._folder / RESTORED)
            except InputError as error:
                logger.warning("a copy of a checkpoint is passed over: %s", error)
                continue
            self._take(files)
            return progress(files)
        return {}

    def copy(self, *, last: bool = False) -> None:
        """Copy what lies here if the work has come further since the last copy; `last`: if anything has changed.

        Raises ConnectionError and InputError as the store does; to be called again then.
        """
        names = self._names()
        reached = progress(names)
        if not reached or (not last and (reached == self._seen or not self._is_settled(names))):
            return
        try:
            files = self._linked()
            while not self._put(files):
                pass  # someone else has moved the pointer meanwhile: look again
            self._seen = progress(files)
        finally:
            shutil.rmtree(self._folder / LINKS, ignore_errors=True)

    def _put(self, files: Mapping[str, Path]) -> bool:
        """Copy files unless the store has come as far; False where the pointer moved on under way."""
        pointer = self._archive.pointer(POINTER)
        theirs = self._held(pointer) if pointer is not None else {}
        own = pointer is not None and pointer.manifest == self._copied
        if theirs and not own and not is_ahead(progress(files), progress(theirs)):
            return True
        manifest = self._archive.put(files, held={file.sha256 for file in theirs.values()})
        if pointer is not None and pointer.manifest == manifest:
            return True
        if not self._archive.move(POINTER, manifest, over=pointer):
            return False
        self._copied = manifest
        if pointer is not None and pointer.before and pointer.before not in (manifest, pointer.manifest):
            with suppress(InputError):  # damaged, or no right to delete: it is left to `r1flow store collect`
                self._archive.drop(pointer.before, keep=(manifest, pointer.manifest))
        return True

    def _held(self, pointer: Pointer) -> Mapping[str, File]:
        """What a pointer leads to; nothing where that is damaged, so that a new copy takes its place."""
        try:
            return self._archive.manifest(pointer.manifest)
        except InputError as error:
            logger.warning("a copy of a checkpoint is replaced: %s", error)
            return {}

    def _names(self) -> list[str]:
        """Files that a copy has, in the order in which they are to be read."""
        while True:
            with suppress(FileNotFoundError):  # an old checkpoint goes just now
                paths = [path for kind in COPIED for path in self._folder.glob(kind) if path.is_file()]
                names = [path.relative_to(self._folder) for path in paths]
                return [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)]

    def _is_settled(self, names: Sequence[str]) -> bool:
        """Whether the account knows of the newest checkpoint: it is written right after it. Not awaited for long."""
        newest = max((_written(self._folder / name) for name in names if STEP.fullmatch(name)), default=0.0)
        return _written(self._folder / ACCOUNT) >= newest or time.time() - newest > SETTLE_SECONDS

    def _linked(self) -> dict[str, Path]:
        """The files under names that stay when the work removes its own; notes, which are added to, are copied."""
        links = self._folder / LINKS
        while True:
            shutil.rmtree(links, ignore_errors=True)
            names = self._names()
            try:
                for name in names:
                    _link(self._folder / name, links / name)
            except FileNotFoundError:  # an old checkpoint goes just now
                continue
            if _steps(names) == _steps(self._names()):
                return {name: links / name for name in names}

    def _reached(self, files: Mapping[str, File]) -> Progress:
        """How far this folder has come; a checkpoint that the copy has as well counts if it is the same."""
        reached = progress(self._names())
        for part, step in progress(files).items():
            folder = f"{part}/step-{step}/".lstrip("/")
            theirs = {name: file.sha256 for name, file in files.items() if name.startswith(folder)}
            if reached.get(part) == step and any(_digest(self._folder / name) != theirs[name] for name in theirs):
                reached[part] = step - 1
        return reached

    def _take(self, files: Mapping[str, File]) -> None:
        """Move what was fetched into its place: notes first, so that no checkpoint is here without those before it."""
        fetched, steps = self._folder / RESTORED, _steps(files)
        for name in [name for name in files if name not in steps]:
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (fetched / name).replace(self._folder / name)
        for folder in sorted({match[0] for name in steps if (match := re.match(r".*?step-\d+(?=/)", name))}):
            shutil.rmtree(self._folder / folder, ignore_errors=True)  # a broken one
            (self._folder / folder).parent.mkdir(parents=True, exist_ok=True)
            (fetched / folder).replace(self._folder / folder)
        shutil.rmtree(fetched)


def _steps(names: Iterable[str]) -> set[str]:
    """Those of checkpoints."""
    return {name for name in names if STEP.fullmatch(name)}


def _link(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".jsonl":
        shutil.copyfile(source, to)
        return
    try:
        os.link(source, to)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, to)


def _written(path: Path) -> float:
    """When a file was written, Unix time; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _digest(path: Path) -> str:
    return digest(path) if path.is_file() else ""


def work_mirror(place: str, root: Path, stage: str, key: str) -> Mirror:
    """Of a stage's work in the project at `root`; `place` is machine.store."""
    archive = Archive(artifact_store(place, root), f"checkpoints/{stage}/{key}/")
    return Mirror(archive, root / "runs" / stage / key)


@contextmanager
def mirrored(place: str | None, root: Path, stage: str, key: str) -> Iterator[None]:
    """Start the block from the store's checkpoints where they are ahead, and copy those that it writes.

    A store that does not answer is waited for within its own retries and then done without, with a warning. Raises
    InputError, before the block, where the store cannot be used as params and environment have it.
    """
    if place is None:
        yield
        return
    try:
        if reached := work_mirror(place, root, stage, key).restore():
            print(f"{stage}: goes on from the checkpoint that {place} has: {_said(reached)}", file=sys.stderr)
    except OSError as error:
        logger.warning("%s: goes on without a look at the store's checkpoints: %s", stage, error)
    command = [sys.executable, "-m", "pipeline.mirror", place, stage, key]
    copying = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE)
    patience = ENDED_SECONDS
    try:
        yield
    except SystemExit:
        patience = STOPPED_SECONDS
        raise
    finally:
        _end(copying, patience, f"{stage}: the newest checkpoint may have no copy in {place}")


def _said(reached: Progress) -> str:
    return ", ".join(f"{part} {number}".strip() for part, number in sorted(reached.items()))


def _end(copying: subprocess.Popen[bytes], patience: float, missing: str) -> None:
    """Let the copying process make its last copy. It says itself what it could not copy; silent, it is spoken for."""
    assert copying.stdin is not None
    copying.stdin.close()
    try:
        status = copying.wait(patience)
    except subprocess.TimeoutExpired:
        copying.kill()
        status = copying.wait()
    if status not in (0, FAILED):
        logger.warning("%s", missing)


def watch(mirror: Mirror, ended: Callable[[float], bool], place: str) -> int:
    """Copy until `ended`, which waits so many seconds for the end, and then once more. 0, or FAILED: with a warning."""
    failures = 0
    while not ended(POLL_SECONDS if not failures else min(LONGEST_PAUSE, 2.0**failures)):
        try:
            mirror.copy()
        except (OSError, InputError) as error:
            if not failures:
                logger.warning("checkpoints are not copied to %s for now: %s", place, error)
            failures += 1
        else:
            if failures:
                logger.warning("checkpoints are copied to %s again", place)
            failures = 0
    try:
        mirror.copy(last=True)
    except (OSError, InputError) as error:
        logger.warning("the newest checkpoint has no copy in %s: %s", place, error)
        return FAILED
    return 0


def main(arguments: Sequence[str]) -> int:
    """`PLACE STAGE KEY`, in the project folder; the end of standard input is the end of the work."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the stage hears it and ends this one in order
    os.nice(10)
    place, stage, key = arguments

    def ended(seconds: float) -> bool:
        return bool(select.select([sys.stdin], [], [], seconds)[0])

    return watch(work_mirror(place, Path.cwd(), stage, key), ended, place)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
