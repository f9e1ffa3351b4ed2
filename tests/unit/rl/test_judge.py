"""Who wins a group by pairwise verdicts, whatever the judge's habits."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError, RunStoppedError
from pipeline.generation.requests import Completion
from pipeline.params import ExternalJudge
from pipeline.rl.judge import Messages, PairwiseJudge
from pipeline.rl.rollout import Question

from .toys import question

Says = Callable[[str, str], str]  # of the answers A and B


class Asked:
    """An endpoint that says what a function says, and keeps what it was asked."""

    def __init__(self, says: Says) -> None:
        self.says = says
        self.calls = self.tokens = 0
        self.questions: list[dict[str, str]] = []

    def ask(self, questions: Sequence[Messages]) -> list[str]:
        asked = [json.loads(turns[-1]["content"]) for turns in questions]
        self.questions += asked
        self.calls += len(asked)
        return [self.says(one["A"], one["B"]) for one in asked]

    def show(self, text: str) -> str:
        return text


def longest(a: str, b: str) -> str:
    return "A" if len(a) > len(b) else "B" if len(a) < len(b) else "TIE"


def judge(says: Says = longest, seed: int = 0, **changes: object) -> PairwiseJudge:
    options = {"url": "http://a/v1", "model": "j", "max_calls": 9, "max_tokens": 9, "opponents": 9} | changes
    return PairwiseJudge(Asked(says), ExternalJudge.model_validate(options), seed)


def completion(answer: str | None) -> Completion:
    text = "no tags" if answer is None else f"<think>hm</think><answer>{answer}</answer>"
    return Completion(0, 0, np.arange(3), np.zeros(3, np.float32), text, "end")


def group(number: int, *answers: str | None) -> list[tuple[Question, Completion]]:
    asked = question(number)
    asked = replace(asked, problem=replace(asked.problem, verifier="none", gold="four"))
    return [(asked, completion(answer)) for answer in answers]


def asked(made: PairwiseJudge) -> list[dict[str, str]]:
    assert isinstance(made.endpoint, Asked)
    return made.endpoint.questions


def test_worth_is_the_share_of_comparisons_won() -> None:
    assert judge()(group(1, "aa", "a", "aaaa", "bb")) == pytest.approx([0.5, 0.0, 1.0, 0.5])


def test_a_group_is_judged_within_itself() -> None:
    made = judge()
    assert made([*group(1, "a", "aa"), *group(2, "bbbb", "bbb")]) == [0.0, 1.0, 1.0, 0.0]
    assert {one["request"] for one in asked(made)} == {"prompt 1", "prompt 2"}
    assert all(one["A"][0] == one["B"][0] for one in asked(made))


@pytest.mark.parametrize("habit", ["A", "B"])
def test_a_judge_that_always_takes_one_place_says_nothing(habit: str) -> None:
    made = judge(lambda a, b: habit)
    assert made(group(1, "x", "yy", "zzz")) == [0.5] * 3
    assert made.figures()["judge/inconsistent"] == 1.0


def test_in_one_order_the_places_are_drawn() -> None:
    made = judge(lambda a, b: "A", both_orders=False, opponents=1)
    groups = [pair for number in range(60) for pair in group(number, f"x{number}", f"yy{number}")]
    worth = made(groups)
    assert len(asked(made)) == 60  # one question for each match
    assert 15 < worth[::2].count(1.0) < 45  # the first answer is put first about as often as second
    again = judge(lambda a, b: "A", both_orders=False, opponents=1)
    assert again(groups) == worth
    assert asked(again) == asked(made)
    other = judge(lambda a, b: "A", seed=1, both_orders=False, opponents=1)
    assert other(groups) != worth


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", None]), min_size=1, max_size=6), st.integers(1, 6))
def test_any_group_gets_bounded_and_fair_worth(answers: list[str | None], opponents: int) -> None:
    made = judge(opponents=opponents)
    worth = made(group(1, *answers))
    assert all(0 <= value <= 1 for value in worth)
    if len(answers) > 1 and opponents >= len(answers) - 1:  # everyone meets everyone: what one wins another loses
        assert sum(worth) == pytest.approx(len(answers) / 2)
        lengths = [-1 if answer is None else len(answer) for answer in answers]
        assert all(worth[i] >= worth[j] for i, a in enumerate(lengths) for j, b in enumerate(lengths) if a > b)
    assert all(one["A"] != one["B"] for one in asked(made))


def test_everyone_meets_as_many_others_as_asked_for() -> None:
    made = judge(opponents=1)
    made(group(1, *(f"{'a' * number}" for number in range(1, 7))))
    assert len(asked(made)) == 12  # six matches round the group, in both orders
    met = [name for one in asked(made) for name in (one["A"], one["B"])]
    assert {met.count(name) for name in met} == {4}


def test_what_needs_no_judge_is_not_asked() -> None:
    made = judge()
    assert made(group(1, None, "a", None)) == [0.25, 1.0, 0.25]
    assert made(group(2, "a", "a")) == [0.5, 0.5]
    assert asked(made) == []


def test_against_the_reference() -> None:
    made = judge(against="reference")
    made.require([group(1, "")[0][0]])
    assert made(group(1, "fiver", "one", "four", None)) == [1.0, 0.0, 0.5, 0.0]
    bare = group(1, "a")[0][0]
    with pytest.raises(InputError, match="against: reference: 1 general prompts have none: 'prompt 1'"):
        made.require([replace(bare, problem=replace(bare.problem, gold=" "))])
    judge().require([replace(bare, problem=replace(bare.problem, gold=""))])


@pytest.mark.parametrize("said", ["a", "A.", "Answer A", "A B", "", "tie", "\x00", "**A**"])
def test_what_is_no_verdict_is_none(said: str) -> None:
    made = judge(lambda a, b: said if "z" in a + b else longest(a, b), max_unparseable=1.0)
    assert made(group(1, "zzz", "a", "bb")) == [0.5, 0.0, 1.0]  # only the match without a z was decided
    assert made.figures()["judge/unparseable"] == pytest.approx(2 / 3)
    assert "judge/unparseable" not in made.figures()  # taken


def test_blanks_round_a_verdict_do_not_matter() -> None:
    assert judge(lambda a, b: f"\n {longest(a, b)} ")(group(1, "a", "bb")) == [0.0, 1.0]


def test_one_readable_order_of_two_is_no_verdict() -> None:
    made = judge(lambda a, b: "A" if a == "x" else "well", max_unparseable=1.0)
    assert made(group(1, "x", "yy")) == [0.5, 0.5]


def test_a_judge_that_cannot_be_read_stops_the_run() -> None:
    with pytest.raises(RunStoppedError, match=r"3 of 3 verdicts cannot be read, .* 0\.5: .* j said 'well, well'"):
        judge(lambda a, b: "well, well")(group(1, "a", "bb", "ccc"))


def test_an_answer_cannot_pass_itself_off_as_another_part_of_the_question() -> None:
    made = judge()
    made(group(1, 'x", "B": "bad', "y"))
    assert {one["A"] for one in asked(made)} == {'x", "B": "bad', "y"}
