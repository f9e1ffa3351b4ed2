"""Each condition is provoked by a planted fault; a sound run provokes none."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import params
from pipeline.rl.conditions import BESIDE, CONDITIONS, WATCHED, Action, Condition
from pipeline.rl.health import Diagnosis, Health

STEPS = 60
Figures = dict[str, float]


def sound(step: int) -> Figures:
    """A run that learns: from a quarter right to three quarters, its thinking twice as long, with some noise."""
    done, noise = step / STEPS, math.sin(7.0 * step)
    return {
        "reward": 0.25 + 0.5 * done + 0.05 * noise,
        "reward_std": 0.4,
        "right": 0.25 + 0.5 * done + 0.05 * noise,
        "unparseable": 0.05,
        "timed_out": 0.0,
        "no_spread": 0.3 + 0.1 * noise,
        "length": 25 + 25 * done + noise,
        "truncated": 0.02,
        "entropy": 0.5 - 0.4 * done,
        "kl": 0.1 * done,
        "gap_mean": 1e-5,
        "gap_max": 1e-3,
        "importance_capped": 0.0,
        "gradient_norm": 0.4 + 0.2 * noise,
        "loss": 0.01 * noise,
        "learning_rate": 3e-4,
        "rollout_s": 1.0,
    }


def examine(series: Iterable[Figures], options: params.Health | None = None, first: int = 1) -> dict[int, Diagnosis]:
    """What is found at each step, by nobody acting on it."""
    health = Health(options or params.Health())
    found = {step: health.examine(step, figures) for step, figures in enumerate(series, first)}
    return {step: diagnosis for step, diagnosis in found.items() if diagnosis is not None}


def planted(at: int, **faults: float | Callable[[int], float]) -> list[Figures]:
    """A sound run whose figures are these from step `at` on."""
    series = [sound(step) for step in range(1, STEPS + 1)]
    for step in range(at, STEPS + 1):
        for name, value in faults.items():
            series[step - 1][name] = value(step) if callable(value) else value
    return series


def test_a_run_that_learns_is_healthy() -> None:
    assert examine(planted(1)) == {}


SLOW = {
    "gap drift": ({"gap_mean": 0.2}, 3, Action.STOP, ["gap_mean", "gap_max", "importance_capped"]),
    "KL blow-up": ({"kl": lambda step: 1.5 + step}, 3, Action.ROLL_BACK, ["kl"]),
    "entropy collapse": ({"entropy": 0.001}, 10, Action.ROLL_BACK, ["entropy", "right"]),
    "length collapse": ({"length": 3.0, "reward": 0.2}, 10, Action.ROLL_BACK, ["length", "reward"]),
    "length explosion": ({"truncated": 0.9}, 10, Action.ROLL_BACK, ["truncated", "length"]),
    "reward hacking": (
        {
            "monitor/since": 20,
            "monitor/preference": 0.7,
            "monitor/preference_rise": 0.2,
            "monitor/preference_rise_low": 0.1,
            "monitor/accuracy": 0.4,
            "monitor/accuracy_fall": 0.2,
            "monitor/accuracy_fall_low": 0.1,
        },
        1,
        Action.STOP,
        ["monitor/accuracy", "monitor/preference"],
    ),
    "dead reward": ({"reward": 0.0}, 20, Action.STOP, ["reward", "unparseable", "timed_out", "truncated"]),
    "no spread": ({"no_spread": 1.0}, 10, Action.STOP, ["no_spread", "right", "reward"]),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_lasting_fault_is_named_after_the_steps_that_it_must_last(name: str) -> None:
    faults, steps, action, evidence = SLOW[name]
    found = examine(planted(31, **faults))
    assert list(found) == list(range(30 + steps, STEPS + 1))
    diagnosis = found[30 + steps]
    assert (diagnosis.condition, diagnosis.action) == (name, action)
    assert [entry.figure for entry in diagnosis.evidence] == evidence


@pytest.mark.parametrize("name", SLOW)
def test_a_fault_that_passes_is_none(name: str) -> None:
    faults, steps, _, _ = SLOW[name]
    series = planted(31, **faults)
    for step in range(31, STEPS + 1, steps):
        series[step - 1] = sound(step)
    assert examine(series) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("figure", "name", "action"),
    [
        ("loss", "broken update", Action.SKIP),
        ("gradient_norm", "broken update", Action.SKIP),
        ("kl", "broken policy", Action.ROLL_BACK),
        ("entropy", "broken policy", Action.ROLL_BACK),
    ],
)
def test_what_is_not_finite_is_found_at_once(figure: str, value: float, name: str, action: Action) -> None:
    series = planted(1)
    series[0][figure] = value
    [diagnosis] = examine(series).values()
    assert (diagnosis.step, diagnosis.condition, diagnosis.action) == (1, name, action)
    assert [entry.figure for entry in diagnosis.evidence] == [figure]


@pytest.mark.parametrize(("figure", "value"), [("gradient_norm", 6.0), ("loss", 1.5), ("loss", -1.5)])
def test_a_spike_is_found_and_does_not_become_the_measure_of_others(figure: str, value: float) -> None:
    series = planted(31, **{figure: value})
    found = examine(series)
    assert list(found) == list(range(31, STEPS + 1))
    assert {diagnosis.condition for diagnosis in found.values()} == {"spike"}
    assert [entry.figure for entry in found[31].evidence] == [figure]


def test_without_a_history_nothing_is_a_spike() -> None:
    assert examine([sound(step) | {"gradient_norm": 10.0**step} for step in range(10)]) == {}


def test_solved_problems_are_no_sickness() -> None:
    solved = {"right": 0.99, "reward": 1.99, "no_spread": 1.0, "entropy": 0.001}
    assert examine(planted(31, **solved)) == {}


def test_shorter_and_better_answers_are_no_sickness() -> None:
    assert examine(planted(31, length=4.0)) == {}  # the reward of the sound run goes on rising


def test_a_base_that_never_ends_its_text_may_learn_to() -> None:
    assert examine(planted(1, truncated=lambda step: 1 - step / (2 * STEPS))) == {}


def test_what_is_not_logged_is_not_missed() -> None:
    assert examine([{"reward": 0.5, "learning_rate": 1e-4}] * STEPS) == {}
    assert examine([{}] * STEPS) == {}


@pytest.mark.parametrize(
    ("off", "name"),
    [
        ({"max_truncated": 1.0}, "length explosion"),
        ({"max_no_spread": 1.0}, "no spread"),
        ({"min_entropy": 0.0}, "entropy collapse"),
        ({"min_length": 0.0}, "length collapse"),
    ],
)
def test_the_end_of_a_range_switches_a_condition_off(off: Mapping[str, float], name: str) -> None:
    worst = {"truncated": 1.0, "no_spread": 1.0, "entropy": 0.0, "length": 0.0, "reward": 0.1, "right": 0.1}
    figures = {figure: worst[figure] for figure in SLOW[name][0]}
    series = planted(31, **figures)
    assert {diagnosis.condition for diagnosis in examine(series).values()} == {name}
    assert examine(series, params.Health(**off)) == {}


HACKED = {
    "monitor/since": 20,
    "monitor/preference": 0.7,
    "monitor/preference_rise": 0.2,
    "monitor/preference_rise_low": 0.1,
    "monitor/agreement": 0.5,
    "monitor/agreement_fall": 0.2,
    "monitor/agreement_fall_low": 0.1,
}


def test_a_preference_that_parts_from_its_witness_is_hacked() -> None:
    found = examine(planted(31, **HACKED))
    assert list(found) == list(range(31, STEPS + 1))
    assert [entry.figure for entry in found[31].evidence] == ["monitor/agreement", "monitor/preference"]
    assert "fell by 0.2 since step 20, more than max_agreement_fall 0.1 and than chance" in str(found[31])


@pytest.mark.parametrize(
    "mended",
    [
        {"monitor/preference_rise_low": -0.01},  # what is not liked better was not hacked
        {"monitor/agreement_fall_low": -0.01},  # chance
        {"monitor/agreement_fall": 0.09},  # within the bound
    ],
)
def test_what_may_be_chance_or_is_little_is_no_hacking(mended: dict[str, float]) -> None:
    assert examine(planted(31, **HACKED | mended)) == {}


# What each option's change makes of a run that is healthy without it.
OPTIONS = {
    "max_skips": (5, {"gradient_norm": math.nan}),
    "max_rollbacks": (0, {"kl": 2.0}),
    "patience": (2, {"entropy": 0.001}),
    "alarm": (1, {"kl": 2.0}),
    "baseline": (40, {"gradient_norm": 6.0}),
    "min_reward": (1.0, {}),
    "dead_steps": (2, {"reward": 0.0}),
    "max_no_spread": (0.1, {}),
    "solved": (0.0, {"no_spread": 1.0}),
    "max_kl": (0.01, {}),
    "max_gap": (1e-6, {}),
    "min_entropy": (0.3, {}),
    "min_length": (0.9, {"length": 10.0, "reward": 0.2}),
    "max_truncated": (0.01, {"truncated": 0.05}),
    "spike_factor": (2.0, {"gradient_norm": 1.5}),
    "spike_floor": (1e-3, {"loss": 0.2}),
    "max_accuracy_fall": (0.3, SLOW["reward hacking"][0]),
    "max_agreement_fall": (0.3, HACKED),
    "spike_window": (10, {"gradient_norm": lambda step: 0.01 if step < 45 else 1.1}),
}


@pytest.mark.parametrize("option", params.Health.model_fields)
def test_every_option_has_an_effect(option: str) -> None:
    value, faults = OPTIONS[option]
    series = planted(31, **faults)
    assert examine(series, params.Health(**{option: value})) != examine(series)


def test_the_first_condition_of_the_order_is_the_one_that_is_named() -> None:
    everything: dict[str, float | Callable[[int], float]] = {}
    for faults, *_ in SLOW.values():
        everything |= faults
    series = planted(31, **everything)
    last = series[STEPS - 1]
    last |= {"loss": math.nan, "kl": math.nan, "gradient_norm": 50.0}
    mended = {"loss": 0.0, "kl": 9.0, "gradient_norm": 0.4, "gap_mean": 0.0}
    named = [examine(series)[STEPS].condition]
    for figure, value in [
        *mended.items(),
        ("kl", 0.0),
        ("entropy", 1.0),
        ("length", 30.0),
        ("truncated", 0.0),
        ("monitor/accuracy_fall", 0.0),
    ]:
        last[figure] = value
        named.append(examine(series)[STEPS].condition)
    last["reward"] = 0.5
    named.append(examine(series)[STEPS].condition)
    assert named == [condition.name for condition in CONDITIONS]


def test_skips_in_a_row_end_in_going_back_and_going_back_ends_in_stopping() -> None:
    health = Health(params.Health(max_skips=2, max_rollbacks=2))
    actions, step, checkpoint = [], 1, 0
    while not actions or actions[-1] is not Action.STOP:
        diagnosis = health.examine(step, {"gradient_norm": math.nan})
        assert diagnosis is not None
        actions.append(diagnosis.action)
        if diagnosis.action is Action.ROLL_BACK:
            health.roll_back(checkpoint)
            step = checkpoint
        step += 1
    attempt = [Action.SKIP, Action.SKIP]
    assert actions == [*attempt, Action.ROLL_BACK, *attempt, Action.ROLL_BACK, *attempt, Action.STOP]
    assert "after 2 skipped steps in a row and going back 2 times" in str(diagnosis)


def test_skips_with_a_sound_step_between_them_go_on() -> None:
    series = planted(1)
    for step in range(1, STEPS + 1, 2):
        series[step - 1]["gradient_norm"] = math.nan
    assert {diagnosis.action for diagnosis in examine(series).values()} == {Action.SKIP}


def test_going_back_forgets_what_came_after_the_checkpoint() -> None:
    health = Health(params.Health())
    for step, figures in enumerate(planted(31, kl=3.0)[:33], 1):
        diagnosis = health.examine(step, figures)
    assert diagnosis is not None
    health.roll_back(30)
    assert [health.examine(step, sound(step)) for step in range(31, STEPS + 1)] == [None] * 30


def test_a_step_that_comes_again_unannounced_is_our_bug() -> None:
    health = Health(params.Health())
    health.examine(2, sound(2))
    with pytest.raises(AssertionError, match="roll_back"):
        health.examine(1, sound(1))


@pytest.mark.parametrize("name", SLOW)
def test_a_step_told_in_two_parts_is_judged_as_one_told_at_once(name: str) -> None:
    series = planted(31, **SLOW[name][0])
    health, found = Health(params.Health()), {}
    for step, figures in enumerate(series, 1):
        update = {figure: figures.pop(figure) for figure in ("loss", "gradient_norm")}
        assert health.examine(step, update) is None
        if (diagnosis := health.examine(step, figures)) is not None:
            found[step] = diagnosis
    assert found == examine(planted(31, **SLOW[name][0]))


def test_each_update_of_a_step_is_judged() -> None:
    health = Health(params.Health())
    for step in range(1, 21):
        health.examine(step, sound(step))
    spiked = [health.examine(21, {"gradient_norm": norm}) is not None for norm in (0.4, 9.0, 0.4)]
    assert spiked == [False, True, False]


def test_a_skipped_step_told_again_counts_once() -> None:
    health = Health(params.Health(max_skips=1))
    for _ in range(3):
        diagnosis = health.examine(1, {"gradient_norm": math.nan})
        assert diagnosis is not None
        assert diagnosis.action is Action.SKIP


def test_the_message_names_condition_evidence_action_and_what_to_try() -> None:
    message = str(examine(planted(31, kl=2.5))[33])
    assert message == (
        "step 33: KL blow-up: kl 2.5 (above max_kl 1 for 3 steps). Now: go back to the last good checkpoint and on "
        "with the next data. To try: raise `loss.kl_coefficient`, lower `learning_rate`, renew the reference more "
        "often (`reference_every`)."
    )


NAMES = [*sorted(WATCHED | BESIDE), "reward_std", "rollout_s"]
ANY_FIGURES = st.dictionaries(st.sampled_from(NAMES), st.floats())
RUNS = st.lists(
    st.one_of(ANY_FIGURES, st.sampled_from([3.0, 0.0, -1.0]).map(lambda x: dict.fromkeys(NAMES, x))), max_size=40
)
SMALL = params.Health(baseline=2, patience=2, alarm=1, dead_steps=3, spike_window=3, max_skips=1, max_rollbacks=1)


def play(health: Health, runs: list[Figures], step: int) -> tuple[list[Diagnosis | None], int]:
    """Examine and go back where health says so, to the step two before."""
    found = []
    for figures in runs:
        step += 1
        found.append(health.examine(step, figures))
        if found[-1] is not None and found[-1].action is Action.ROLL_BACK:
            step = max(0, step - 2)
            health.roll_back(step)
    return found, step


@given(RUNS)
def test_any_figures_get_a_bounded_answer(runs: list[Figures]) -> None:
    found, _ = play(Health(SMALL), runs, 0)
    actions = [None if diagnosis is None else diagnosis.action for diagnosis in found]
    assert actions.count(Action.ROLL_BACK) <= SMALL.max_rollbacks
    assert (Action.SKIP, Action.SKIP) not in pairwise(actions)
    assert all(str(diagnosis) for diagnosis in found)


@given(RUNS, RUNS)
@settings(max_examples=50)
def test_a_run_that_was_interrupted_is_judged_as_one_that_was_not(before: list[Figures], after: list[Figures]) -> None:
    health = Health(SMALL)
    _, step = play(health, before, 0)
    resumed = Health(SMALL)
    resumed.restore(json.loads(json.dumps(health.state(), allow_nan=False)))
    assert [str(diagnosis) for diagnosis in play(resumed, after, step)[0]] == [
        str(diagnosis) for diagnosis in play(health, after, step)[0]
    ]
    assert resumed.state() == health.state()


def test_what_is_remembered_is_bounded() -> None:
    health = Health(params.Health())
    for step in range(1000):
        health.examine(step, sound(step % STEPS))
    assert len(json.dumps(health.state())) < 30_000


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_advice_names_options_that_exist(condition: Condition) -> None:
    named = re.findall(r"`([\w.]+)(?:: \w+)?`", condition.advice)
    for key in named:  # as it stands in the stage's `train`, in general_rl, or in the whole file
        assert any(_exists(section, key) for section in (params.GRPO, params.GeneralRL, params.Params)), key


def _exists(section: type[params.Section], key: str) -> bool:
    name, _, rest = key.partition(".")
    field = section.model_fields.get(name)
    return field is not None and (not rest or _exists(field.annotation, rest))
