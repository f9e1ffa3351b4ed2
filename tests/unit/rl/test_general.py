"""Which prompts a step asks, and what their answers are worth."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError, RunStoppedError
from pipeline.generation.requests import Completion
from pipeline.params import GeneralRL, PreferenceReward, Rewards
from pipeline.params import Health as HealthOptions
from pipeline.rl.figures import rollout_figures, sample_table
from pipeline.rl.general import GeneralRewards, MixedQuestions, is_general, set_aside
from pipeline.rl.grpo import train
from pipeline.rl.health import Health
from pipeline.rl.rollout import Group, Question, Questions
from pipeline.rl.scoring import score

from .toys import counted, decoder, grpo, judge, plain_engine, question


def general(number: int) -> Question:
    made = question(number)
    problem = replace(made.problem, id=f"g{number:04}", prompt=f"please {number}", verifier="none", gold="")
    return replace(made, problem=problem)


def line(share: float, first_step: int = 3) -> MixedQuestions:
    checkable, other = ([make(number) for number in range(7)] for make in (question, general))
    return MixedQuestions(Questions(checkable, 0), Questions(other, 0), PreferenceReward(general=share), first_step)


@given(st.floats(0.01, 0.99), st.integers(0, 500), st.integers(1, 64))
def test_general_prompts_come_in_late_and_evenly(share: float, place: int, count: int) -> None:
    before, later = (line(share).take(place, count, step) for step in (2, 3))
    assert not any(map(is_general, before))
    assert len(later) == count
    assert abs(sum(map(is_general, later)) - share * count) < 1.0001


def test_all_general_prompts_are_asked_before_one_comes_again() -> None:
    asked = [one.problem.id for one in line(0.25).take(0, 4 * 7, 3) if is_general(one)]
    assert len(asked) == len(set(asked)) == 7


def options(**preference: float) -> GeneralRL:
    train = {"steps": 20, "prompts": 4, "group": 2, "max_new_tokens": 4, "learning_rate": 1e-3}
    return GeneralRL.model_validate({"train": train, "preference": preference})


@pytest.mark.parametrize(("last", "first"), [(0.5, 10), (1.0, 0), (0.001, 19), (400 / 1700, 15)])
def test_the_last_share_of_the_steps_is_general(last: float, first: int) -> None:
    assert options(last=last).first_general_step == first


def test_a_step_without_checkable_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"preference\.general 0\.8 leaves no checkable one of train\.prompts 4"):
        options(general=0.8)


def test_what_is_looked_at_is_not_trained_on() -> None:
    questions = [question(number) for number in (5, 2, 9, 4)]
    apart, others = set_aside(questions, 2)
    assert [one.problem.id for one in apart] == ["0002", "0004"]
    assert [one.problem.id for one in others] == ["0005", "0009"]
    with pytest.raises(InputError, match="4 prompts to look at: there are only 4 checkable ones"):
        set_aside(questions, 4)


def completion(text: str) -> Completion:
    return Completion(0, 0, np.arange(3), np.zeros(3, np.float32), text, "end")


KIND, SHORT = "<think>hm</think><answer>yes</answer>", "yes"


def liked(pairs: Sequence[tuple[Question, Completion]]) -> list[float]:
    assert all(is_general(asked) for asked, _ in pairs)
    return [0.75 if one.text == KIND else 0.0 for _, one in pairs]


def rewards(**opinions: float) -> GeneralRewards:
    weights = {"accuracy": 1.0, "format": 0.5, "language": 0.0}
    made = {name: (weight, liked) for name, weight in opinions.items()}
    return GeneralRewards(Rewards.model_validate({"weights": weights}), made, limit=10)


def test_a_general_answer_is_worth_its_form_and_how_it_is_liked() -> None:
    pairs = [(general(1), completion(KIND)), (question(1), completion(KIND)), (general(1), completion(SHORT))]
    first, second, third = rewards(preference=2.0, judge=1.0)(pairs)
    assert first.reward == pytest.approx(0.5 + 2 * 0.75 + 0.75)
    assert first.parts == {"format": 1.0, "preference": 0.75, "judge": 0.75}
    assert first.verdict is None
    assert first.reason == "format: well formed; preference: 0.750; judge: 0.750"
    assert (second.reward, second.verdict) == (0.5, "wrong")  # a wrong answer in good form; nobody is asked to like it
    assert "preference" not in second.parts
    assert third.reward == 0.0


def test_figures_count_a_verdict_over_what_was_verified_and_a_part_over_what_has_it() -> None:
    gold = replace(question(2), problem=replace(question(2).problem, gold="yes"))
    groups = [Group(one, (completion(KIND), completion(SHORT))) for one in (gold, general(2))]
    scored = score(rewards(preference=1.0), groups)
    figures = rollout_figures(scored, 2)
    assert (figures["right"], figures["unparseable"]) == (0.5, 0.5)
    assert figures["reward/accuracy"] == 0.5
    assert figures["reward/preference"] == pytest.approx(0.375)
    assert figures["reward/format"] == 0.5
    rows = sample_table(scored)
    assert [row["preference"] for row in rows] == ["", "", 0.75, 0.0]
    assert len({tuple(row) for row in rows}) == 1  # the same columns in each


def test_tables_show_both_kinds() -> None:
    kinds = [*(question(number) for number in range(9)), *(general(number) for number in range(9))]
    groups = [Group(one, (completion(KIND),)) for one in kinds]
    shown = [row["prompt"] for row in sample_table(score(rewards(preference=1.0), groups))]
    assert shown == ["prompt 0", "prompt 1", "please 0", "please 1"]


def test_a_judge_that_will_not_go_on_leaves_a_checkpoint_of_all_before(tmp_path: Path) -> None:
    steps, working = itertools.count(), judge(counted)

    def judged(pairs: Sequence[tuple[Question, Completion]]) -> Sequence[object]:
        if next(steps) == 3:
            raise RunStoppedError("general_rl.judge.max_calls: 5: the next question may exceed it")
        return working(pairs)

    model = decoder()
    with pytest.raises(RunStoppedError, match="max_calls"):
        train(
            model, Questions([question(number) for number in range(9)], 0), grpo(checkpoint_every=100),
            generate=plain_engine(model), judge=judged, health=Health(HealthOptions()), seed=0, scratch=tmp_path,
            log=lambda *_: None, table=lambda *_: None, title="test",
        )  # fmt: skip
    assert (tmp_path / "step-3").is_dir()
    model = decoder()
    logged: list[int] = []
    train(
        model, Questions([question(number) for number in range(9)], 0), grpo(checkpoint_every=100),
        generate=plain_engine(model), judge=working, health=Health(HealthOptions()), seed=0, scratch=tmp_path,
        log=lambda figures, step: logged.append(step), table=lambda *_: None, title="test",
    )  # fmt: skip
    assert logged == [3, 4, 5]
