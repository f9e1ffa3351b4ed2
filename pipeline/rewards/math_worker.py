"""math-verify in a process of its own: `python -m pipeline.rewards.math_worker` answers one JSON line with another.

SymPy may take for ever, or all memory, over an innocent-looking expression, and a thread cannot be killed. So the
worker has a bound on its memory, a question that is not answered in time costs it its life, and the next question gets
a fresh one. A worker that dies over a question counts as timed out: the question was too much for it.
"""

import atexit
import json
import resource
import selectors
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from typing import Any

SECONDS = 5.0
"""A question may take this long, once the worker is up."""
START_SECONDS = 60.0
ALARM_SECONDS = 30
"""After so long the worker ends itself: whoever asked is gone, or it would have been killed."""
MEMORY_BYTES = 4 * 2**30

_LONGEST_EXPRESSION = 2_000


class Worker:
    """The process and its pipes. Not for use by two threads at once: `_ask` holds the lock."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.rewards.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.stdout, selectors.EVENT_READ)
        if self.read(START_SECONDS) != {"ready": True}:
            raise RuntimeError("the math-verify worker did not start; does `python -c 'import math_verify'` work?")

    def read(self, seconds: float) -> Any:
        """The next reply, or None where none comes in time or the worker has died."""
        line = self.stdout.readline() if self.selector.select(seconds) else b""
        return json.loads(line) if line else None

    def ask(self, question: list[str], seconds: float) -> Any:
        try:
            self.stdin.write(json.dumps(question).encode() + b"\n")
            self.stdin.flush()
        except BrokenPipeError:
            return None
        return self.read(seconds)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.selector.close()


_lock = threading.Lock()
_workers: list[Worker] = []  # none or one


def _ask(*question: str) -> Any:
    """The worker's reply, None where it did not give one in time."""
    with _lock:
        if not _workers:
            _workers.append(Worker())
        reply = _workers[0].ask(list(question), SECONDS)
        if reply is None:
            _workers.pop().close()
        return reply


@atexit.register
def _close() -> None:
    while _workers:
        _workers.pop().close()


@lru_cache(maxsize=65_536)
def parses(text: str) -> bool | None:
    """Whether math-verify reads `text`; None where it did not answer in time."""
    return _ask(text) if len(text) <= _LONGEST_EXPRESSION else False


def equal(answer: str, gold: str) -> str:
    """right, wrong, unparseable or timed out."""
    if len(answer) > _LONGEST_EXPRESSION:
        return "unparseable"
    return _ask(answer, gold) or "timed out"


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from math_verify import parse
    from math_verify import verify as verify_parsed

    def read(text: str) -> Any:
        delimited = text if "$" in text or "\\boxed" in text else f"${text}$"
        return parse(delimited, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=False)

    def reply(question: list[str]) -> Any:
        parsed = [read(text) for text in question]
        if len(parsed) == 1:
            return bool(parsed[0])
        if not parsed[0]:
            return "unparseable"
        return "right" if verify_parsed(parsed[1], parsed[0], timeout_seconds=None, raise_on_error=False) else "wrong"

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        signal.alarm(ALARM_SECONDS)  # by default SIGALRM ends the process
        print(json.dumps(reply(json.loads(line))), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    _main()
