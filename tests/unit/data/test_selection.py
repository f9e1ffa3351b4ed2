"""Rejection sampling keeps what is right and fit to learn from, the best first."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.selection import (
    Candidate,
    candidate,
    drop_figures,
    general_traces,
    select,
    traces,
    yield_figures,
    yields,
)
from pipeline.errors import InputError
from pipeline.params import RejectionSampling
from pipeline.records import Problem, Trace, schema
from pipeline.rewards.score import Attempt, Scorer

OPTIONS = RejectionSampling.model_validate(
    {"problems": 1, "samples": 1, "selection": {"paragraph_chars": 200}, "rewards": {"repetition_ngram": 3}}
)


def problem(number: int, *, task: str = "sum", verifier: str = "numeric", difficulty: float | None = 1.0) -> Problem:
    return Problem(str(number), "s", task, f"{number}+7=?", str(number + 7), verifier, "", difficulty, "train")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "cut", "drop"),
    [
        ("<think>5+7=12</think><answer>12</answer>", False, ""),
        ("<think>5+7=12</think><answer>12</answer>", True, "cut"),
        ("<think>5+7=12</think>12", False, "malformed"),
        ("<think>5+7=13</think><answer>13</answer>", False, "wrong"),
        ("<think>5+7=13</think><answer>twelve</answer>", False, "unparseable"),
        ("<think> </think><answer>12</answer>", False, "no thinking"),
        ("<think>we add 相加 these</think><answer>12</answer>", False, "mixed languages"),
        (f"<think>{'the sum of 5 and 7 ' * 20}</think><answer>12</answer>", False, "repetitive"),
        (f"<think>{' '.join(map(str, range(100)))}</think><answer>12</answer>", False, "long paragraph"),
        ("<think>```\nprint(5+7)\n```</think><answer>12</answer>", False, "code block"),
    ],
)
def test_each_rule_drops_what_breaks_it(text: str, cut: bool, drop: str) -> None:
    attempt = Attempt("5+7=?", "12", "numeric", text, 10, cut, 100)
    assert candidate(problem(5), attempt, Scorer(OPTIONS.rewards)(attempt), OPTIONS).drop == drop


def made(thinking: str, *, reward: float = 1.0, tokens: int = 10, of: str = "a", drop: str = "") -> Candidate:
    return Candidate(of, thinking, "12", reward, tokens, drop)  # type: ignore[arg-type]


def kept(candidates: list[Candidate], keep: int) -> list[str]:
    return [one.thinking for one in select(candidates, keep) if not one.drop]


def test_reward_counts_first_then_brevity_then_difference() -> None:
    assert kept([made("long", tokens=9), made("short", tokens=3), made("best", reward=2, tokens=50)], 1) == ["best"]
    assert kept([made("long", tokens=9), made("short", tokens=3)], 1) == ["short"]
    alike = [made("first we add"), made("first we all"), made("otherwise")]
    assert kept(alike, 2) == ["first we add", "otherwise"]


def test_what_is_said_twice_is_kept_once() -> None:
    judged = select([made("so"), made("so"), made("or")], 3)
    assert [one.drop for one in judged] == ["", "same again", ""]


@given(
    st.lists(
        st.builds(
            made,
            st.text("abc", min_size=1, max_size=4),
            reward=st.sampled_from([0.5, 1.0]),
            tokens=st.integers(1, 5),
            of=st.sampled_from("xyz"),
            drop=st.sampled_from(["", "wrong"]),
        )
    ),
    st.integers(1, 3),
)
def test_no_problem_has_more_than_asked_for_and_none_better_was_left_out(
    candidates: list[Candidate], keep: int
) -> None:
    judged = select(candidates, keep)
    assert [one.thinking for one in judged] == [one.thinking for one in candidates]
    for name in "xyz":
        mine = [(before, after) for before, after in zip(candidates, judged, strict=True) if before.problem_id == name]
        fit = {before.thinking for before, _ in mine if not before.drop}
        chosen = [after for _, after in mine if not after.drop]
        assert len(chosen) == min(keep, len(fit))
        assert all(after.drop == before.drop for before, after in mine if before.drop)
        for left in (after for _, after in mine if after.drop == "surplus"):
            assert all((one.reward, -one.tokens) >= (left.reward, -left.tokens) for one in chosen)


PROBLEMS = [
    *(problem(number) for number in range(6)),
    *(problem(n, task="request", verifier="none") for n in (6, 7, 8)),
]
TABLE = pl.DataFrame(PROBLEMS, schema=schema(Problem))
KNOWN = pl.DataFrame([Trace(one.id, "think", one.gold, "s") for one in PROBLEMS], schema=schema(Trace))


def test_general_traces_make_their_share_and_come_from_what_nothing_checks() -> None:
    general = general_traces(TABLE, KNOWN, reasoning=6, share=0.25, seed=0)
    assert general.height == 2
    assert set(general["problem_id"]) < {"6", "7", "8"}
    assert general.equals(general_traces(TABLE, KNOWN, reasoning=6, share=0.25, seed=0))
    assert general_traces(TABLE, KNOWN, reasoning=600, share=0.25, seed=0).height == 3
    assert general_traces(TABLE, KNOWN, reasoning=6, share=0.0, seed=0).is_empty()


def test_a_share_of_general_traces_needs_some() -> None:
    with pytest.raises(InputError, match=r"rejection_sampling\.general: 0\.25"):
        general_traces(TABLE.head(6), KNOWN.head(6), reasoning=6, share=0.25, seed=0)


def test_yields_count_problems_not_completions() -> None:
    asked = pl.DataFrame(
        [problem(0), problem(1, difficulty=2.0), problem(2, difficulty=2.0), problem(3, task="count", difficulty=None)],
        schema=schema(Problem),
    )
    judged = [made("a", of="0"), made("b", of="0"), made("c", of="1"), made("d", of="3", drop="wrong")]
    yielded = yields(asked, traces(judged, "reasoning_rl"))
    assert yield_figures(yielded) == {"yield/count": 0.0, "yield/sum": 2 / 3, "yield/sum/1": 1.0, "yield/sum/2": 0.5}
    assert drop_figures(judged)["dropped/wrong"] == 1
    assert sum(drop_figures(judged).values()) == 1
