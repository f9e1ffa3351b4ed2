"""The golden suite at 100 %, and versions that rise with every change of a judgement."""

import hashlib
import json
from typing import Any

import pytest

from pipeline.records import Verifier
from pipeline.rewards.answer import readable, verify
from pipeline.rewards.format import check_form
from pipeline.rewards.language import language_share
from pipeline.rewards.length import soft_overlong
from pipeline.rewards.repetition import repetition
from pipeline.rewards.versions import verifier_versions
from tests.unit.rewards.golden import ANSWERS, FORMAT, LANGUAGE, LENGTH, REPETITION
from tests.unit.rewards.needs import needs_sandbox

ANSWER_CASES = [
    pytest.param(
        verifier, *case, marks=[needs_sandbox] if verifier == "code" else [], id=f"{verifier}-{case[0][:40]!a}"
    )
    for verifier, cases in ANSWERS.items()
    for case in cases
]

PINNED = {
    "exact": (2, "01ab252d42281919"),
    "numeric": (3, "9d95546bdde98fa0"),
    "math": (3, "cbd3e1ecd94b65f6"),
    "code": (2, "24f3df93e685eac7"),
    "format": (1, "a0195aba40cad9b1"),
    "language": (1, "4d676df8aa5ecf82"),
    "length": (1, "44548b51be440cfb"),
    "repetition": (1, "c5f055a115e48ed7"),
}
"""Version, and digest of the golden judgements. Where a judgement has changed, raise the version in
pipeline/rewards/versions.py; where cases were only added, pin the new digest beside the old version."""


@pytest.mark.parametrize(("verifier", "answer", "gold", "verdict"), ANSWER_CASES)
def test_answer(verifier: Verifier, answer: str, gold: str, verdict: str) -> None:
    assert readable(gold, verifier)
    outcome = verify(answer, gold, verifier)
    assert outcome.verdict == verdict, outcome.reason
    assert outcome.score == (verdict == "right")
    assert outcome.reason


@pytest.mark.parametrize(("text", "score"), FORMAT)
def test_format(text: str, score: float) -> None:
    form = check_form(text)
    assert form.score == score == form.completion.well_formed
    assert (form.reason == "well formed") == bool(score)


@pytest.mark.parametrize(("thinking", "target", "prompt", "share"), LANGUAGE)
def test_language(thinking: str, target: str, prompt: str, share: float) -> None:
    found = language_share(thinking, target, prompt)
    assert found.score == pytest.approx(share), found.reason


@pytest.mark.parametrize(("tokens", "limit", "buffer", "cut", "penalty"), LENGTH)
def test_length(tokens: int, limit: int, buffer: int, cut: bool, penalty: float) -> None:
    assert soft_overlong(tokens, limit, buffer, cut=cut) == pytest.approx(penalty)


@pytest.mark.parametrize(("text", "size", "penalty"), REPETITION)
def test_repetition(text: str, size: int, penalty: float) -> None:
    assert repetition(text, size) == pytest.approx(penalty)


def test_the_suite_is_large() -> None:
    assert sum(map(len, ANSWERS.values())) >= 120


@pytest.mark.parametrize("name", PINNED)
def test_a_changed_judgement_is_a_new_version(name: str) -> None:
    """The cases are judged as expected (above), so their digest is that of the judgements."""
    cases: dict[str, list[Any]] = {
        **ANSWERS,
        "format": FORMAT,
        "language": LANGUAGE,
        "length": LENGTH,
        "repetition": REPETITION,
    }
    digest = hashlib.sha256(json.dumps(cases[name]).encode()).hexdigest()[:16]
    assert (verifier_versions()[name], digest) == PINNED[name]
    assert set(verifier_versions()) == set(PINNED)
