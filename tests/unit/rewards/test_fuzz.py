"""No text makes a verifier crash or hang."""

import json
import time
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.params import Rewards, Weights
from pipeline.rewards import math_worker
from pipeline.rewards.answer import readable
from pipeline.rewards.code import verify_code
from pipeline.rewards.sandbox import Limits
from pipeline.rewards.score import Attempt, Scorer
from pipeline.rewards.verdict import Outcome
from tests.unit.rewards.needs import needs_sandbox

GOLDS = {"exact": "lamot", "numeric": "-7/2", "math": "\\frac{x}{2}"}
SCORER = Scorer(Rewards(weights=Weights(length=1.0, repetition=1.0), overlong_buffer=8))
PIECES = (
    *("<think>", "</think>", "<answer>", "</answer>", "<eos>", "<|user|>", "<pad>"),
    *("1", "42", "-7/2", "3.5", "1,000", "1e999", "1e-999", "9" * 50, "0", "/0", "%", "\\%", "$", "€", "US$", "\u2212"),
    *("nan", "inf", "None", "True", "x", "y", " or ", " and ", "?", "~", "&", "#", "@", ";", ":", "\n", "\t", "\x00"),
    *("\\frac{", "\\frac12", "\\sqrt{", "\\boxed{", "}", "{", "(", ")", "[", "]", "^", "_", "^{9", "!", "!!", "|", "="),
    *("\\int_0^1", "\\sum_{i=1}^{10}", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "\\text{", "\\left(", "\\infty"),
    *("\\", "\\(", "\\)", "\\[", "\\]", "`", "```", "$$", "https://x", "__import__('os')", "{}" * 40, "((" * 40),
    *("the ", "Wurzel ", "答案", "ответ", "كم", "١٢", "½", "\u200b", "\u202e", "e\u0301", "\ud800", "🍎", "ﬀ", "İ"),
)
"""What breaks parsers."""

adversarial = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
texts = st.text(max_size=200) | adversarial | st.builds("{}{}{}".format, adversarial, st.text(max_size=20), adversarial)


def _whole(thinking: str, answer: str) -> str:
    return f"<think>{thinking}</think><answer>{answer}</answer>"


completions = texts | st.builds(_whole, texts, texts)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_completion_makes_a_verifier_crash_or_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_worker, "SECONDS", 0.25)  # many a text is too much for SymPy

    @settings(max_examples=10_000, database=None, suppress_health_check=list(HealthCheck))
    @given(text=completions, prompt=adversarial, tokens=st.integers(1, 64), cut=st.booleans())
    def judges(text: str, prompt: str, tokens: int, cut: bool) -> None:
        started = time.monotonic()
        for verifier, gold in GOLDS.items():
            scored = SCORER(Attempt(prompt, gold, verifier, text, tokens, cut, limit=64))
            assert scored.verdict in get_args(Outcome)
            assert scored.reward == pytest.approx(sum(scored.parts.values()))
            assert all(-1 <= score <= 1 for score in scored.parts.values())
        assert time.monotonic() - started < 10

    judges()


@given(text=texts)
def test_no_gold_makes_a_verifier_crash(text: str) -> None:
    for verifier in ("exact", "numeric", "code"):
        readable(text, verifier)


@needs_sandbox
@pytest.mark.slow
@settings(max_examples=60, database=None)
@given(answer=texts, stdin=texts, expected=texts)
def test_no_program_makes_the_sandbox_crash(answer: str, stdin: str, expected: str) -> None:
    gold = json.dumps([[stdin, expected]])
    assert verify_code(answer, gold, Limits(cpu_seconds=1, wall_seconds=2)).verdict in get_args(Outcome)


@pytest.mark.parametrize(
    "text",
    [
        "\\(" * 15_000,
        "$" * 30_001,
        "`" * 30_001,
        "\\[" * 15_000,
        "http://" * 4_000,
        "a" * 30_000,
        "<think>" * 4_000,
        "<think>" + "</think><answer>" * 30_000,
    ],
)
def test_time_does_not_explode_with_length(text: str) -> None:
    for whole in (text, _whole(text, "1"), _whole("", text)):
        for verifier, gold in GOLDS.items():
            started = time.monotonic()
            SCORER(Attempt("", gold, verifier, whole, 1, False, 64))
            assert time.monotonic() - started < 6
