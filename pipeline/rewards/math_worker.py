"""math-verify in processes of their own: `python -m pipeline.rewards.math_worker` answers one JSON line with another.

SymPy may take for ever, or all memory, over an innocent-looking expression, and a thread cannot be killed. So the
worker has a bound on its memory, a question that is not answered in time costs it its life, and the next question gets
a fresh one. A worker that dies over a question counts as timed out: the question was too much for it.

math-verify reads what it can and passes over the rest: of `5 ? 6` it reads 5. An answer must be one expression, so what
holds several, or a number beside the one that was read, is refused here.
"""

import atexit
import json
import os
import re
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

_DELIMITED = re.compile(r"\$\$.+?\$\$|\$.+?\$|\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,!;: ]|\{,\})(?=\d{3}(?!\d))", re.ASCII)
_SECOND = re.compile(
    r"\b(?:or|and|either|maybe|not)\b|(?:[?;~&@#]|(?<![_^])(?<!frac )(?<!binom )\d\s|\\quad|\\[,; ])\s*\d"
    r"|\d\s*(?:[^\x00-\x7f×÷−π≤≥≠]+|\.{2,}|\\{2}|\\(?:to|implies|iff|(?:[Ll]ong)?(?:[Ll]eft)?[Rr]ightarrow)\b)\s*[+-]?\d"
    r"|[\u00b9\u00b2\u00b3\u2070-\u2079]"  # superscripts: of 5² it reads 5
)
"""Where a second value may begin. In `\\log_2 8`, `2^3 3^2` and `\\frac 1 2` none does."""
_EQUAL_NUMBERS = re.compile(r"(?:^|[=$({\[])\s*[+-]?[\d.,]*\d\s*=\s*[+-]?\.?\d")
"""A number that is said to be another one: of `1=5` it reads the last."""


class Worker:
    """The process and its pipes. Not for use by two threads at once: whoever asks has taken it from `_idle`."""

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


_slots = threading.BoundedSemaphore(min(4, os.cpu_count() or 1))
"""So many questions, and so many workers, at a time; a worker takes some 100 MB."""
_lock = threading.Lock()
_idle: list[Worker] = []


def _take() -> Worker:
    with _lock:
        if _idle:
            return _idle.pop()
    return Worker()


def _ask(*question: str) -> Any:
    """A worker's reply, None where it did not give one in time."""
    with _slots:
        worker = _take()
        reply = worker.ask(list(question), SECONDS)
        if reply is None:
            worker.close()
        else:
            with _lock:
                _idle.append(worker)
        return reply


@atexit.register
def _close() -> None:
    while _idle:
        _idle.pop().close()


def parses(text: str) -> bool | None:
    """Whether math-verify reads `text`; None where it did not answer in time, which may be another time's answer."""
    try:
        return _parses(text) if len(text) <= _LONGEST_EXPRESSION else False
    except TimeoutError:
        return None


@lru_cache(maxsize=65_536)
def _parses(text: str) -> bool:
    if (answer := _ask(text)) is None:
        raise TimeoutError
    return bool(answer)


def equal(answer: str, gold: str) -> str:
    """right, wrong, unparseable or timed out."""
    if len(answer) > _LONGEST_EXPRESSION:
        return "unparseable"
    return _ask(answer, gold) or "timed out"


def _several(answer: str) -> bool:
    """Whether an answer holds more than one formula, or a digit beside its only one."""
    if "\\boxed" in answer:
        before, _, after = answer.partition("\\boxed")
        return "\\boxed" in after or _has_digit(before) or _has_digit(after.rpartition("}")[2])
    formulas = _DELIMITED.findall(answer)
    return len(formulas) > 1 or (len(formulas) == 1 and _has_digit(_DELIMITED.sub("", answer)))


def _has_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from math_verify import parse
    from math_verify import verify as verify_parsed
    from sympy import Expr

    def read(text: str) -> Any:
        text = _THOUSANDS.sub("", text)
        delimited = text if "\\boxed" in text or _DELIMITED.search(text) else f"${text}$"
        return parse(delimited, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=False)  # pyrefly: ignore[bad-argument-type]

    def reply(question: list[str]) -> Any:
        parsed = [read(text) for text in question]
        if len(parsed) == 1:
            return bool(parsed[0])
        answer = _THOUSANDS.sub("", question[0])
        one_value = bool(parsed[0]) and isinstance(parsed[0][0], Expr)
        if not parsed[0] or _several(answer) or _EQUAL_NUMBERS.search(answer) or (one_value and _SECOND.search(answer)):
            return "unparseable"
        return "right" if verify_parsed(parsed[1], parsed[0], timeout_seconds=None, raise_on_error=False) else "wrong"

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        signal.alarm(ALARM_SECONDS)  # by default SIGALRM ends the process
        print(json.dumps(reply(json.loads(line))), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    _main()
