"""Whether an answer equals the gold answer, by the verifier that the problem names.

`exact` compares text, `numeric` compares numbers as people write them, `math` asks math-verify, `code` runs the answer
against tests. Right, wrong, unparseable and timed out are four verdicts, never one for another. Nothing is evaluated
here: numbers are read by one regular expression, math-verify runs in a process of its own that is killed when its time
is up, and programs run in a sandbox.
"""

import re
from fractions import Fraction

from pipeline.records import normalise
from pipeline.rewards.code import read_tests, verify_code
from pipeline.rewards.math_worker import equal, parses
from pipeline.rewards.verdict import Verdict, right, timed_out, unparseable, wrong

TOLERANCE = Fraction(1, 1_000_000)
"""Relative; 0.333333 is a third, 0.33 is not. Of a whole gold it is absolute: 1000001 is not a million."""

_LONGEST_NUMBER = 100
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:US)?[$€£¥]?\s*(?:(?P<whole>\d+)\s+(?=\d+\s*/))?(?P<top>{_DIGITS})"
    rf"(?:[eE](?P<exponent>[+-]?\d{{1,3}})|\s*/\s*(?P<bottom>\d+))?\s*(?:(?P<percent>\\?%)|[$€£¥])?\.?",
    re.ASCII,
)


def number(text: str) -> tuple[Fraction, ...]:
    """The values that a written number may stand for; empty where it is none.

    Reads signs (also the unicode minus), thousands separators, decimals, exponents up to three digits, fractions, mixed
    numbers, a currency sign and a percent sign. `50%` has two readings, 50 and 1/2, because questions ask for both.
    """
    if len(text) > _LONGEST_NUMBER:
        return ()
    match = _NUMBER.fullmatch(text.strip().replace("\u2212", "-"))
    if match is None or (match["bottom"] is not None and int(match["bottom"]) == 0):
        return ()
    value = Fraction(match["top"].replace(",", "")) * Fraction(10) ** int(match["exponent"] or 0)
    value = value / int(match["bottom"] or 1) + int(match["whole"] or 0)
    value = -value if match["sign"] == "-" else value
    return (value, value / 100) if match["percent"] else (value,)


def readable(gold: str, verifier: str) -> bool:
    """Whether the verifier can read this gold answer. A gold that math-verify cannot read in time is not readable."""
    match verifier:
        case "none":
            return True
        case "exact":
            return bool(normalise(gold))
        case "numeric":
            return bool(number(gold))
        case "math":
            return bool(number(gold)) or parses(gold) is True
        case "code":
            return bool(read_tests(gold))
    raise ValueError(f"verifier: {verifier!r}: must be exact, numeric, math, code or none")


def verify(answer: str, gold: str, verifier: str) -> Verdict:
    """Compare an answer with the gold answer.

    `gold` must be `readable` by `verifier`. Raises ValueError for verifier `none`, whose problems have no right answer,
    and InputError for `code` where no sandbox works on this machine.
    """
    match verifier:
        case "exact":
            return _verdict(normalise(answer) == normalise(gold)) if answer.strip() else unparseable()
        case "numeric":
            readings = number(answer)
            return _verdict(_close(readings, number(gold))) if readings else unparseable()
        case "math":
            return _verify_math(answer, gold)
        case "code":
            return verify_code(answer, gold)
    raise ValueError(f"verifier: {verifier!r}: must be exact, numeric, math or code to verify an answer")


def _verdict(equal: bool) -> Verdict:
    return right() if equal else wrong()


def _close(answers: tuple[Fraction, ...], golds: tuple[Fraction, ...]) -> bool:
    """Whether any two readings are. Two percentages are compared as such: 50 % is not 0.5 %."""
    if len(answers) == len(golds) == 2:
        answers, golds = answers[:1], golds[:1]
    return any(abs(answer - gold) <= _tolerance(answer, gold) for answer in answers for gold in golds)


def _tolerance(answer: Fraction, gold: Fraction) -> Fraction:
    return TOLERANCE * (min(1, abs(gold)) if gold.denominator == 1 else max(abs(answer), abs(gold)))


def _verify_math(answer: str, gold: str) -> Verdict:
    """Plain numbers are compared here; only what is more than that goes to math-verify.

    Which reads neither `50%` nor `1e3` as people do: of a number each reading may do.
    """
    readings, golds = number(answer), number(gold)
    if readings and golds:
        return _verdict(_close(readings, golds))
    if answer.strip() == gold.strip():
        return right()
    outcomes = [equal(answer, gold)]
    if readings and outcomes != ["right"]:
        outcomes += [equal(f"\\frac{{{value.numerator}}}{{{value.denominator}}}", gold) for value in readings]
    match "right" if "right" in outcomes else outcomes[0]:
        case "timed out":
            return timed_out("math-verify did not answer in time")
        case "unparseable":
            return unparseable()
        case outcome:
            return _verdict(outcome == "right")
