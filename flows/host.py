"""The GPUs of a machine, each for one stage at a time, whoever started it; and how many stages share its cores.

Prefect counts what it has sent, and not what runs: two workers on one machine, two servers, or a run that Prefect has
given up would share a GPU unawares. So a stage takes a GPU by a lock of the machine's own kernel, which is free the
moment its holder is gone, however it ended. Where there is no GPU the machine itself is what is taken.

The locks are files in /tmp/r1flow-UID (or R1FLOW_LOCKS, where workers do not share a /tmp), and tell who holds them. A
note beside each says under which supervisor its holder's stage runs: a holder that was killed leaves that to wind the
stage down, and until it has, nobody else takes the GPU.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from pipeline.errors import InputError
from pipeline.files import write_json

LOCKS = "R1FLOW_LOCKS"
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL = 1.0  # seconds
SAY_AGAIN = 300.0  # seconds
ASK_SECONDS = 30.0


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no nvidia-smi.

    Raises InputError where there is one that does not work.
    """
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS,
            check=True,
        )
    except FileNotFoundError:
        return ()
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(
            f"nvidia-smi does not work here ({error}); on a machine to be used without GPUs set {VISIBLE} to nothing"
        ) from error
    return tuple(listed.stdout.split())


@contextmanager
def taken(
    count: int, who: str, supervisor: int, say: Callable[[str], None], stopped: Callable[[], bool]
) -> Iterator[dict[str, str]]:
    """Take `count` GPUs and yield the environment that shows a process these alone. Waits for them, and says for whom.

    `supervisor` is the process below which they are used. Yields nothing, and holds nothing, where `stopped` while
    waiting. Raises InputError where the machine has too few.
    """
    devices = gpus()
    slots = devices or ("machine",)
    if count > max(1, len(devices)):
        raise InputError(f"distributed.ranks: {count}: this machine has {len(devices)} GPUs")
    said = -SAY_AGAIN
    while not stopped():
        with ExitStack() as held:
            mine = _take_free(held, slots, count if devices else 1, who, supervisor)
            if mine:
                yield {VISIBLE: ",".join(mine), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if devices else {}
                return
        if time.monotonic() - said >= SAY_AGAIN:
            said = time.monotonic()
            what = f"{count} of this machine's GPUs" if devices else "this machine, which has no GPU"
            say(f"waiting for {what}: {'; '.join(_holders(slots))}")
        time.sleep(POLL)
    yield {}


@contextmanager
def beside() -> Iterator[int]:
    """How many stages run on this machine beside the one of the block; more than it has cores are not told apart."""
    others, mine = 0, None
    for core in range(os.cpu_count() or 1):
        lock = FileLock(_folder() / f"core-{core}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            others += 1
            continue
        if mine is None:
            mine = lock
        else:
            lock.release()
    try:
        yield others
    finally:
        if mine is not None:
            mine.release()


def _take_free(held: ExitStack, slots: Sequence[str], count: int, who: str, supervisor: int) -> list[str]:
    """As many free slots as asked for, or none: who holds a part and waits for the rest may wait for ever."""
    mine: list[str] = []
    for slot in slots:
        with ExitStack() as trying, suppress(Timeout):
            trying.enter_context(FileLock(_folder() / f"{slot}.lock", timeout=0))
            if not _winds_down(slot):
                held.push(trying.pop_all())
                mine.append(slot)
        if len(mine) == count:
            holder = {"who": who, "process": os.getpid(), "supervisor": supervisor, "started": _started(supervisor)}
            for name in mine:
                write_json(_note(name), holder)
                held.callback(_note(name).unlink, missing_ok=True)
            return mine
    held.close()
    return []


def _winds_down(slot: str) -> bool:
    """Whether the stage of a holder that is gone still does."""
    note = _read_note(slot)
    began = None if note is None else _started(note["supervisor"])
    return note is not None and began is not None and note["started"] == began


def _started(process: int) -> float | None:
    """When a process began, which tells it from a later one of its number; None where there is none."""
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(process)
        if found.status() != psutil.STATUS_ZOMBIE:
            return found.create_time()
    return None


def _holders(slots: Sequence[str]) -> Iterator[str]:
    for slot in slots:
        if (note := _read_note(slot)) is not None:
            yield f"{slot} is held by {note['who']}, process {note['process']}"


def _read_note(slot: str) -> dict[str, Any] | None:
    try:
        return json.loads(_note(slot).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):  # another version's
        return None


def _note(slot: str) -> Path:
    return _folder() / f"{slot}.holder"


def _folder() -> Path:
    folder = Path(os.environ.get(LOCKS) or f"/tmp/r1flow-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder}: belongs to another user; name a folder of your own in {LOCKS}")
    return folder
