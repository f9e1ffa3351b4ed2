"""runs/serving/servers/: the servers that run for this project, a file each, so that others find them.

A server locks its file for as long as its process lives: however that ends, it is not found any more.
"""

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from pipeline.files import atomic_file


@dataclass(frozen=True, slots=True)
class Running:
    """A server, as it says of itself."""

    address: str  # http://…, as it is reached from this machine
    model: str  # what clients call it
    follows: bool  # the champion of the registered model of that name
    since: float  # Unix time


def serving_folder(root: Path) -> Path:
    return root / "runs" / "serving"


def _file(root: Path) -> Path:
    """Of this process."""
    return serving_folder(root) / "servers" / f"{os.getpid()}.json"


def note_server(root: Path, address: str, model: str, *, follows: bool) -> None:
    """This process serves from now on."""
    for file, server in _noted(root).items():
        if server is None:
            file.unlink(missing_ok=True)
    with atomic_file(_file(root)) as temporary:
        temporary.write_text(json.dumps(asdict(Running(address, model, follows, time.time()))), encoding="utf-8")
        lock = os.open(temporary, os.O_RDWR)  # never closed: the lock goes with the process
        fcntl.flock(lock, fcntl.LOCK_EX)


def forget_server(root: Path) -> None:
    """This process no longer serves."""
    _file(root).unlink(missing_ok=True)


def find_server(root: Path, *, follows: bool = False) -> Running | None:
    """The server that runs now; None where there is none.

    Of several the one that follows the champion, else the one that began last. `follows`: none but the former.
    """
    found = [server for server in _noted(root).values() if server is not None and (server.follows or not follows)]
    return max(found, key=lambda server: (server.follows, server.since), default=None)


def _noted(root: Path) -> dict[Path, Running | None]:
    """File → the server that it tells of; None where that was killed."""
    noted: dict[Path, Running | None] = {}
    for path in _file(root).parent.glob("*.json"):
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:  # a server may end meanwhile
            noted[path] = Running(**json.load(file)) if _locked(file) else None
    return noted


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
