"""runs/serving/server.json: the server that runs for this project, so that others find it."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pipeline.files import write_json


@dataclass(frozen=True, slots=True)
class Running:
    """A server, as it says of itself."""

    address: str  # http://…, as it is reached from this machine
    model: str  # what clients call it
    follows: bool  # the champion of the registered model of that name
    pid: int
    born: float  # the process's start, Unix time: an id is used again


def serving_folder(root: Path) -> Path:
    return root / "runs" / "serving"


def _file(root: Path) -> Path:
    return serving_folder(root) / "server.json"


def note_server(root: Path, address: str, model: str, *, follows: bool) -> None:
    """This process serves from now on. The last one that says so is the one that is found."""
    pid = os.getpid()
    write_json(_file(root), asdict(Running(address, model, follows, pid, psutil.Process(pid).create_time())))


def forget_server(root: Path) -> None:
    """This process no longer serves."""
    running = _read(root)
    if running is not None and running.pid == os.getpid():
        _file(root).unlink(missing_ok=True)


def find_server(root: Path) -> Running | None:
    """The server that runs now; None where there is none, however the last one ended."""
    running = _read(root)
    if running is None:
        return None
    try:
        return running if psutil.Process(running.pid).create_time() == running.born else None
    except psutil.NoSuchProcess:
        return None


def _read(root: Path) -> Running | None:
    path = _file(root)
    return Running(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
