"""Rewards are the written-out sums of their parts."""

import itertools
import re

import pytest

from pipeline.errors import InputError
from pipeline.params import Rewards, Weights
from pipeline.rewards import score
from pipeline.rewards.score import Attempt, Scorer
from tests.unit.rewards.needs import needs_sandbox

GERMAN = "zuerst rechnen wir zusammen"


def attempt(
    thinking: str = "we add", answer: str = "12", *, text: str | None = None, tokens: int = 50, cut: bool = False
) -> Attempt:
    whole = f"<think>{thinking}</think><answer>{answer}</answer>" if text is None else text
    return Attempt("5+7=?", "12", "numeric", whole, tokens, cut, limit=100)


def test_the_default_is_r1s_sum_of_accuracy_format_and_language() -> None:
    scored = Scorer(Rewards())(attempt())
    assert scored.parts == {"accuracy": 1.0, "format": 1.0, "language": 1.0}
    assert (scored.reward, scored.verdict) == (3.0, "right")
    assert scored.reason == "accuracy: equal; format: well formed; language: 2 of 2 words in en"


@pytest.mark.parametrize(
    ("case", "reward", "verdict"),
    [
        (attempt(answer="13"), 0 + 1 + 1, "wrong"),
        (attempt(answer="twelve"), 0 + 1 + 1, "unparseable"),
        (attempt(GERMAN), 1 + 1 + 0, "right"),
        (attempt("5+7=12"), 1 + 1 + 1, "right"),
        (attempt("we 相加 the ones"), 1 + 1 + 0.75, "right"),
        (attempt(text="we add 12"), 0 + 0 + 1, "unparseable"),
        (attempt(text="<think>we add</think>12"), 0 + 0 + 1, "unparseable"),
        (attempt(text=""), 0 + 0 + 1, "unparseable"),
    ],
)
def test_a_reward_by_the_default_weights(case: Attempt, reward: float, verdict: str) -> None:
    scored = Scorer(Rewards())(case)
    assert scored.reward == pytest.approx(reward)
    assert scored.verdict == verdict


def test_every_weight_counts_for_its_part() -> None:
    weights = Weights(accuracy=2.0, format=0.5, language=0.25, length=3.0, repetition=4.0)
    scorer = Scorer(Rewards(weights=weights, overlong_buffer=20, repetition_ngram=2))
    scored = scorer(attempt("we we we we 相加", answer="12", tokens=90))
    thinking = [*re.findall(r"\w+|\S", "<think>we we we we"), "相", "加"]
    grams = list(itertools.pairwise([*thinking, *re.findall(r"\w+|\S", "</think><answer>12</answer>")]))
    parts = {
        "accuracy": 1.0,
        "format": 1.0,
        "language": 4 / 5,
        "length": -0.5,
        "repetition": len(set(grams)) / len(grams) - 1,
    }
    assert scored.parts == pytest.approx(parts)
    assert scored.reward == pytest.approx(2 * 1 + 0.5 * 1 + 0.25 * 0.8 - 3 * 0.5 + 4 * parts["repetition"])
    assert "length: 90 of 100 tokens" in scored.reason


def test_a_completion_that_was_cut_gets_the_whole_penalty() -> None:
    scorer = Scorer(Rewards(weights=Weights(length=1.0), overlong_buffer=20))
    assert scorer(attempt(tokens=100, cut=True)).parts["length"] == -1.0
    assert "cut" in scorer(attempt(tokens=100, cut=True)).reason


def test_a_part_without_weight_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*arguments: object, **options: object) -> None:
        raise AssertionError("computed")

    for name in ("verify", "language_share", "soft_overlong", "repetition"):
        monkeypatch.setattr(score, name, called)
    scored = Scorer(Rewards(weights=Weights(accuracy=0.0, language=0.0)))(attempt())
    assert (scored.parts, scored.reward, scored.verdict) == ({"format": 1.0}, 1.0, None)


def test_problems_without_a_right_answer_are_refused_unless_accuracy_has_no_weight() -> None:
    problem = Attempt("Hello", "", "none", "<think>hi</think><answer>hi</answer>", 5, False, 100)
    message = "rewards.weights.accuracy: 1: must be 0 for problems of verifier none"
    with pytest.raises(InputError, match=re.escape(message)):
        Scorer(Rewards()).score_all([problem])
    with pytest.raises(InputError, match=re.escape(message)):
        Scorer(Rewards()).require(["numeric", "none"])
    [scored] = Scorer(Rewards(weights=Weights(accuracy=0.0))).score_all([problem])
    assert scored.parts == {"format": 1.0, "language": 1.0}


def test_code_is_refused_before_any_work_where_no_sandbox_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise InputError("verifier code: bwrap is not installed")

    monkeypatch.setattr(score, "require_sandbox", missing)
    with pytest.raises(InputError, match="bwrap is not installed"):
        Scorer(Rewards()).require(["numeric", "code"])
    Scorer(Rewards(weights=Weights(accuracy=0.0))).require(["code"])


def test_a_buffer_longer_than_the_completions_is_refused() -> None:
    scorer = Scorer(Rewards(weights=Weights(length=1.0), overlong_buffer=101))
    with pytest.raises(InputError, match="overlong_buffer: 101: must not be above the token limit 100"):
        scorer(attempt())


def test_a_language_that_nobody_can_detect_is_refused() -> None:
    with pytest.raises(InputError, match=r"rewards\.language: xx"):
        Scorer(Rewards(language="xx"))(attempt())


def test_a_batch_comes_back_in_order_as_one_by_one() -> None:
    scorer = Scorer(Rewards())
    plain = [attempt(answer=str(number)) for number in range(20)]
    mathematical = [
        Attempt("", "x+1", "math", f"<think>we</think><answer>{n}+x</answer>", 5, False, 9) for n in range(20)
    ]
    for attempts in (plain, [*plain, *mathematical]):
        assert scorer.score_all(attempts) == [scorer(each) for each in attempts]
    assert [scored.verdict for scored in scorer.score_all(mathematical)].index("right") == 1
    assert scorer.score_all([]) == []


@needs_sandbox
def test_programs_are_scored_beside_each_other_and_in_order() -> None:
    programs = [
        Attempt("", '[["", "3"]]', "code", f"<think>a</think><answer>print({n})</answer>", 5, False, 9)
        for n in range(8)
    ]
    outcomes = [scored.verdict for scored in Scorer(Rewards()).score_all(programs)]
    assert outcomes == ["right" if number == 3 else "wrong" for number in range(8)]
