"""The answer is a Python program: right where it passes every test of the gold answer.

The gold answer is JSON, `[[standard input, expected standard output], …]`. A program gets the input and nothing else;
the expected output stays here, where what the program has written is compared with it. So a program that prints a
verdict, exits with a nice status or looks for the tests gains nothing. Each test runs in a sandbox of its own, and the
first that fails ends the verification.
"""

import json
import re
from typing import Any

from pipeline.rewards.containment import require_sandbox
from pipeline.rewards.sandbox import Limits, Run, run
from pipeline.rewards.verdict import Verdict, right, timed_out, unparseable, wrong

_LONGEST_PROGRAM = 64_000  # characters
_FENCED = re.compile(r"\s*(```|~~~)[ \t]*(?:python[\d.]*|py)?[ \t]*\n(.*?)\n?[ \t]*\1\s*", re.DOTALL | re.IGNORECASE)
_KILLED = (128 + 9, 128 + 24)  # by SIGKILL or SIGXCPU, with which the kernel ends what has used up its processor time


def read_tests(gold: str) -> list[tuple[str, str]]:
    """The tests as (standard input, expected standard output); empty where the gold answer is not a list of them."""
    try:
        tests = json.loads(gold)
    except (ValueError, RecursionError):
        return []
    return [(test[0], test[1]) for test in tests] if isinstance(tests, list) and all(map(_is_test, tests)) else []


def _is_test(test: Any) -> bool:
    return isinstance(test, list) and len(test) == 2 and all(isinstance(text, str) for text in test)


def verify_code(answer: str, gold: str, limits: Limits | None = None) -> Verdict:
    """Run the program of the answer, fenced (```python) or bare, against every test.

    Raises InputError where no sandbox works here.
    """
    limits = limits or Limits()
    tests = read_tests(gold)
    assert tests, "a gold answer that is not readable"
    program = _program(answer)
    if not program.strip():
        return unparseable("no program")
    if len(program) > _LONGEST_PROGRAM:
        return unparseable(f"a program of more than {_LONGEST_PROGRAM} characters")
    require_sandbox()
    for number, (stdin, expected) in enumerate(tests, start=1):
        outcome = run(program, _with_plain_lines(stdin), limits)
        verdict = _judge(outcome, expected, f"test {number} of {len(tests)}", limits)
        if verdict.verdict != "right":
            return verdict
    return right(f"{len(tests)} of {len(tests)} tests passed")


def _program(answer: str) -> str:
    text = _with_plain_lines(answer)
    fenced = _FENCED.fullmatch(text)
    return fenced[2] if fenced else text


def _with_plain_lines(text: str) -> str:
    """As a terminal on the sandbox's system would give them."""
    return text.replace("\r\n", "\n")


def _judge(outcome: Run, expected: str, test: str, limits: Limits) -> Verdict:
    last = outcome.errors.decode(errors="replace").strip().rpartition("\n")[2][:200]
    if outcome.ended == "time":
        return timed_out(f"{test}: no end within {limits.wall_seconds:g} s")
    if outcome.ended == "output":
        return wrong(f"{test}: more than {limits.output_bytes} bytes of output")
    if outcome.status in _KILLED and outcome.seconds >= limits.cpu_seconds:
        return timed_out(f"{test}: more than {limits.cpu_seconds} s of processor time")
    if last.startswith(("SyntaxError:", "IndentationError:", "TabError:")):
        return unparseable(f"{test}: {last}")
    if outcome.status != 0:
        return wrong(f"{test}: exit status {outcome.status}{last and ': '}{last}")
    if _lines(outcome.output) != _lines(expected.encode(errors="replace")):
        return wrong(f"{test}: another output")
    return right()


def _lines(output: bytes) -> list[bytes]:
    """Lines without the white space at their ends, and without empty lines at the end of the output."""
    return [line.rstrip() for line in output.rstrip().split(b"\n")]
