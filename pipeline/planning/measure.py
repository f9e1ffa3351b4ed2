"""One release, served in one way, under a load: how right, how fast, how large. In a process of its own.

The process comes out of a server that has imported everything and computed nothing (pipeline.planning.load), so a
measurement starts in no time, with the memory of any process that has loaded torch, and this module needs none of it.
"""

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from pipeline.params import Sampling

Way = Literal["memory", "offload"]
"""All experts in memory; or the hottest ones, the others mapped from the file."""

CLIENTS = 16
SLOWEST = 0.95  # of the requests are answered at least as fast as is said
WORK = "pipeline.planning.load"


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    gold: str
    verifier: str


@dataclass(frozen=True, slots=True)
class Load:
    """What every release is asked."""

    questions: tuple[Question, ...]
    alone: int  # of them also one after the other
    sampling: Sampling
    seed: int
    hot: float  # share of the experts that an offloaded model keeps in memory


@dataclass(frozen=True, slots=True)
class Measured:
    """Speeds in tokens a second, times in seconds, memory in bytes."""

    right: tuple[bool, ...]  # of each question
    speed: float  # with CLIENTS clients
    speed_alone: float  # with one
    first_token: float  # from request to first token, SLOWEST of the requests, CLIENTS clients
    latency: float  # likewise to the end of the answer
    memory: int  # at its peak of the process's own: without mapped files, which the system may drop
    before: int  # of that, before the model was loaded
    resident: int  # at its peak with the mapped files
    device: str
    device_kind: str


def measure(folder: Path, way: Way, load: Load) -> Measured:
    """Measure in a new process. Raises RuntimeError where that dies."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WORK])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(theirs, folder, way, load), daemon=True)
    process.start()
    theirs.close()
    try:
        found: Measured | BaseException = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"{folder.name}, {way}: the process that measured it ended with {process.exitcode}"
        ) from None
    process.join()
    if isinstance(found, BaseException):
        raise found
    return found


def _report(to: Connection, folder: Path, way: Way, load: Load) -> None:
    from pipeline.planning.load import measure_here

    try:
        to.send(measure_here(folder, way, load))
    except Exception as error:  # whatever it is, the parent shall say it
        to.send(error)
