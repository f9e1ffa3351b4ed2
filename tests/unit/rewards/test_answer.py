import signal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewards import math_worker
from pipeline.rewards.answer import number, readable, verify


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        (" -3.50 ", Fraction(-7, 2)),
        ("\u22123", -3),
        ("$1,234.5", Fraction(2469, 2)),
        ("5 €", 5),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-1 1/2", Fraction(-3, 2)),
        ("1.5e3", 1500),
        ("2E-3", Fraction(1, 500)),
        ("72.", 72),
    ],
)
def test_reads_numbers_as_people_write_them(text: str, value: Fraction) -> None:
    assert number(text) == (value,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "1,23",
        "1/0",
        "1 2",
        "--3",
        "nan",
        "inf",
        "1e9999",
        "9" * 101,
        "1+1",
        "0x10",
        "١٢",
        "3 apples",
        "1,2,3",
    ],
)
def test_reads_nothing_else(text: str) -> None:
    assert number(text) == ()


@given(st.text(max_size=40))
def test_no_text_makes_a_verifier_fail(text: str) -> None:
    number(text)
    assert verify(text, "1", "numeric").verdict in {"right", "wrong", "unparseable"}
    assert verify(text, "1", "exact").verdict in {"right", "wrong", "unparseable"}


@given(st.integers(-(10**12), 10**12))
def test_number_equals_itself_with_separators_and_no_other(value: int) -> None:
    assert verify(f"{value:,}", str(value), "numeric").verdict == "right"
    assert verify(str(value + 1), str(value), "numeric").verdict == "wrong"


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("0.333333333", "1/3", "right"),
        ("0.33", "1/3", "wrong"),
        ("50%", "0.5", "right"),
        ("50%", "50", "right"),
        ("0.5", r"50\%", "right"),
        ("5%", "0.5", "wrong"),
        ("0", "0.0", "right"),
        ("1e-9", "0", "wrong"),
        ("seven", "7", "unparseable"),
        ("", "7", "unparseable"),
    ],
)
def test_numeric_verdicts(answer: str, gold: str, verdict: str) -> None:
    outcome = verify(answer, gold, "numeric")
    assert outcome.verdict == verdict
    assert outcome.score == (verdict == "right")


@pytest.mark.parametrize(
    ("answer", "verdict"), [(" Lamot ", "right"), ("ＬＡＭＯＴ", "right"), ("lamo", "wrong"), (" ", "unparseable")]
)
def test_exact_verdicts(answer: str, verdict: str) -> None:
    assert verify(answer, "lamot", "exact").verdict == verdict


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        (r"\frac{1}{2}", "0.5", "right"),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", "right"),
        ("x+1", "x+2", "wrong"),
        ("(2, 1)", "(1, 2)", "wrong"),
        ("((((", "x", "unparseable"),
        ("", "x", "unparseable"),
        ("x" * 3_000, "x", "unparseable"),
        ("1,000", "1000", "right"),
    ],
)
def test_math_verdicts(answer: str, gold: str, verdict: str) -> None:
    assert verify(answer, gold, "math").verdict == verdict


def test_question_that_takes_too_long_times_out_and_the_next_one_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify("x+1", "1+x", "math").verdict == "right"
    [*_, worker] = math_worker._idle
    worker.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(math_worker, "SECONDS", 0.1)
    assert verify("x+1", "y+1", "math").verdict == "timed out"
    monkeypatch.setattr(math_worker, "SECONDS", 5.0)
    assert verify("x+1", "1+x", "math").verdict == "right"


def test_worker_that_dies_is_replaced() -> None:
    assert verify("x+1", "1+x", "math").verdict == "right"
    [*_, worker] = math_worker._idle
    worker.process.kill()
    worker.process.wait()
    assert verify("x+1", "1+x", "math").verdict == "timed out"
    assert verify("x+1", "1+x", "math").verdict == "right"


@pytest.mark.parametrize(
    ("gold", "verifier", "expected"),
    [
        ("7", "numeric", True),
        ("seven", "numeric", False),
        ("seven", "exact", True),
        (" ", "exact", False),
        (r"\sqrt{2}", "math", True),
        ("((((", "math", False),
        ("", "none", True),
        ('[["1 2", "3"]]', "code", True),
        ("[]", "code", False),
        ('[["1 2", 3]]', "code", False),
        ('{"1 2": "3"}', "code", False),
        ("print(3)", "code", False),
        ("[" * 100_000, "code", False),
    ],
)
def test_gold_is_readable_by_its_verifier(gold: str, verifier: str, expected: bool) -> None:
    assert readable(gold, verifier) is expected


def test_unknown_verifier_is_refused() -> None:
    with pytest.raises(ValueError, match="guess"):
        readable("7", "guess")
    with pytest.raises(ValueError, match="none"):
        verify("7", "7", "none")


def test_what_was_too_much_once_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter([None, True])
    monkeypatch.setattr(math_worker, "_ask", lambda *question: next(replies))
    assert math_worker.parses("asked_again_1") is None
    assert math_worker.parses("asked_again_1") is True
    assert math_worker.parses("asked_again_1") is True  # not asked a third time
