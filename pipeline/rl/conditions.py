"""The named ways in which reinforcement learning falls sick, each found in the figures of recent steps.

Deliberately not one alarm on the loss: in GRPO the loss hovers around zero whatever happens to the policy, so reward,
spread, entropy, KL, length and the gap between engine and trainer are watched beside it.

Conditions are looked at in the order of CONDITIONS. What makes the other figures worthless comes first, then what runs
away, then what declines, then what merely teaches nothing. A condition whose figures are not logged (KL without a
reference, say) is silent. Where a decline has an innocent reading (the problems are solved, answers became shorter
and better), the condition asks for the figure that tells the two apart.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pipeline import params
from pipeline.rl.past import Past

UPDATE = ("loss", "gradient_norm")
"""Figures of the update itself: known before the weights change."""


class Action(StrEnum):
    """What is to be done about a condition."""

    SKIP = "leave this step's update out"
    ROLL_BACK = "go back to the last good checkpoint and on with the next data"
    STOP = "stop the run"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A figure, and the bound that it crossed; without a bound it is there to be read beside one that did."""

    figure: str
    value: float
    bound: str = ""

    def __str__(self) -> str:
        return f"{self.figure} {self.value:.4g}" + (f" ({self.bound})" if self.bound else "")


@dataclass(frozen=True, slots=True)
class Case:
    """What a condition is judged by: figures of the step as they were told, finite or not, and the past with them."""

    step: int
    told: Mapping[str, float]
    past: Past
    options: params.Health


@dataclass(frozen=True, slots=True)
class Condition:
    """One sickness: how it is found, what is done, what to try."""

    name: str
    reads: tuple[str, ...]  # figures; it is looked at when one of them is told
    find: Callable[[Case], tuple[Evidence, ...]]  # empty: it is not there
    remedy: Action  # the first one; pipeline/rl/health.py bounds how often
    advice: str  # in terms of params.yaml
    flaws: bool = False  # the step's update must not be made


def _spike_bound(name: str, step: int, past: Past, options: params.Health) -> float:
    """Above which magnitude a figure of the update of `step` is a spike; infinite while too little is known."""
    typical = past.typical(name, before=step, least=options.baseline, window=options.spike_window)
    return math.inf if typical is None else max(options.spike_floor, options.spike_factor * typical)


def _not_finite(case: Case) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(name, value, "must be finite") for name, value in case.told.items() if not math.isfinite(value)
    )


def _broken_update(case: Case) -> tuple[Evidence, ...]:
    return tuple(evidence for evidence in _not_finite(case) if evidence.figure in UPDATE)


def _spike(case: Case) -> tuple[Evidence, ...]:
    found = []
    for name in UPDATE:
        bound = _spike_bound(name, case.step, case.past, case.options)
        if name in case.told and abs(case.told[name]) > bound:
            rule = f"beyond {bound:.4g}, the larger of spike_floor and spike_factor × median"
            found.append(Evidence(name, case.told[name], rule))
    return tuple(found)


def _runs_away(name: str, bound: float, key: str, case: Case) -> tuple[Evidence, ...]:
    """A figure above its bound in each of the newest `alarm` steps."""
    values = case.past.last(name, case.options.alarm)
    if not values or min(values) <= bound:
        return ()
    return (Evidence(name, values[-1], f"above {key} {bound:g} for {len(values)} steps"),)


def _kl_blow_up(case: Case) -> tuple[Evidence, ...]:
    return _runs_away("kl", case.options.max_kl, "max_kl", case)


def _gap_drift(case: Case) -> tuple[Evidence, ...]:
    found = _runs_away("gap_mean", case.options.max_gap, "max_gap", case)
    return found + _beside(case, "gap_max", "importance_capped") if found else ()


def _entropy_collapse(case: Case) -> tuple[Evidence, ...]:
    bound, values = case.options.min_entropy, case.past.last("entropy", case.options.patience)
    if not values or max(values) >= bound or _is_solved(case):
        return ()
    found = Evidence("entropy", values[-1], f"below min_entropy {bound:g} for {len(values)} steps")
    return (found, *_beside(case, "right"))


def _length_collapse(case: Case) -> tuple[Evidence, ...]:
    share, start = case.options.min_length, case.past.at_start("length")
    values = case.past.last("length", case.options.patience)
    if start is None or not values or max(values) >= share * start or _has_risen(case, "reward"):
        return ()
    rule = f"below min_length {share:g} of the start's {start:.4g} for {len(values)} steps, and the reward did not rise"
    return (Evidence("length", values[-1], rule), *_beside(case, "reward"))


def _length_explosion(case: Case) -> tuple[Evidence, ...]:
    bound, values = case.options.max_truncated, case.past.last("truncated", case.options.patience)
    if not values or min(values) <= bound or not _has_risen(case, "truncated"):
        return ()
    start = case.past.at_start("truncated")
    rule = f"above max_truncated {bound:g} for {len(values)} steps, at the start {start:.4g}"
    return (Evidence("truncated", values[-1], rule), *_beside(case, "length"))


def _reward_hacking(case: Case) -> tuple[Evidence, ...]:
    """The preference rises while what it should go with falls, both by more than chance in paired differences."""
    told = case.told
    since = told.get("monitor/since")
    if since is None or told.get("monitor/preference_rise_low", 0.0) <= 0:
        return ()
    found = []
    for name in ("accuracy", "agreement"):
        key = f"max_{name}_fall"
        bound, fall = getattr(case.options, key), told.get(f"monitor/{name}_fall", 0.0)
        if fall > bound and told.get(f"monitor/{name}_fall_low", 0.0) > 0:
            rule = f"fell by {fall:.3g} since step {since:.0f}, more than {key} {bound:g} and than chance"
            found.append(Evidence(f"monitor/{name}", told.get(f"monitor/{name}", math.nan), rule))
    if not found:
        return ()
    rule = f"rose by {told.get('monitor/preference_rise', math.nan):.3g} since then"
    return (*found, Evidence("monitor/preference", told.get("monitor/preference", math.nan), rule))


def _dead_reward(case: Case) -> tuple[Evidence, ...]:
    bound, values = case.options.min_reward, case.past.last("reward", case.options.dead_steps)
    if not values or max(values) > bound:
        return ()
    found = Evidence("reward", values[-1], f"not above min_reward {bound:g} for dead_steps {len(values)}")
    return (found, *_beside(case, "unparseable", "timed_out", "truncated"))


def _no_spread(case: Case) -> tuple[Evidence, ...]:
    bound, values = case.options.max_no_spread, case.past.last("no_spread", case.options.patience)
    if not values or min(values) <= bound or _is_solved(case):
        return ()
    found = Evidence("no_spread", values[-1], f"above max_no_spread {bound:g} for {len(values)} steps")
    return (found, *_beside(case, "right", "reward"))


def _is_solved(case: Case) -> bool:
    """Whether nearly all answers were right in the newest `patience` steps."""
    values = case.past.last("right", case.options.patience)
    return bool(values) and sum(values) / len(values) >= case.options.solved


def _has_risen(case: Case, name: str) -> bool:
    """Whether a figure's mean over the newest `patience` steps is above its median in the first ones."""
    values, start = case.past.last(name, case.options.patience), case.past.at_start(name)
    return bool(values) and start is not None and sum(values) / len(values) > start


def _beside(case: Case, *names: str) -> tuple[Evidence, ...]:
    """Figures of the newest step that help to read another one."""
    figures = case.past.recent[-1].figures
    return tuple(Evidence(name, figures[name]) for name in names if name in figures)


_HACKING = (
    "monitor/preference_rise",
    "monitor/preference_rise_low",
    "monitor/accuracy_fall",
    "monitor/accuracy_fall_low",
    "monitor/agreement_fall",
    "monitor/agreement_fall_low",
    "monitor/accuracy",
    "monitor/agreement",
    "monitor/preference",
    "monitor/since",
)
_WATCHED = ("reward", "no_spread", "right", "length", "truncated", "entropy", "kl", "gap_mean", *UPDATE, *_HACKING)

CONDITIONS = (
    Condition(
        "broken update",
        UPDATE,
        _broken_update,
        Action.SKIP,
        "lower `learning_rate`, set `dtype: float32`; the tables of samples show whether certain texts bring it about",
        flaws=True,
    ),
    Condition(
        "broken policy",
        _WATCHED,
        _not_finite,
        Action.ROLL_BACK,
        "lower `learning_rate` and `gradient_clip`, set `dtype: float32`",
    ),
    Condition(
        "spike",
        UPDATE,
        _spike,
        Action.SKIP,
        "lower `learning_rate` or lengthen `warmup`; more `prompts` per step make its gradient less noisy",
        flaws=True,
    ),
    Condition(
        "gap drift",
        ("gap_mean",),
        _gap_drift,
        Action.STOP,
        "set `dtype: float32` or `replay_experts: true`, correct the rest by `loss.importance_cap`; in float32 "
        "a gap says that the engine has other weights than the trainer, which is a bug",
    ),
    Condition(
        "KL blow-up",
        ("kl",),
        _kl_blow_up,
        Action.ROLL_BACK,
        "raise `loss.kl_coefficient`, lower `learning_rate`, renew the reference more often (`reference_every`)",
    ),
    Condition(
        "entropy collapse",
        ("entropy",),
        _entropy_collapse,
        Action.ROLL_BACK,
        "raise `loss.clip_high`, keep `temperature` at 1, lower `learning_rate`, raise `loss.kl_coefficient`",
    ),
    Condition(
        "length collapse",
        ("length",),
        _length_collapse,
        Action.ROLL_BACK,
        "lower the weights of the rewards for length and repetition, set `loss.normalisation: token`, lower "
        "`learning_rate`",
    ),
    Condition(
        "length explosion",
        ("truncated",),
        _length_explosion,
        Action.ROLL_BACK,
        "raise `max_new_tokens` or the weight of the reward for length, set `loss.normalisation: constant`",
    ),
    Condition(
        "reward hacking",
        ("monitor/accuracy_fall", "monitor/agreement_fall"),
        _reward_hacking,
        Action.STOP,
        "shorten `preference.last`, lower `preference.weight`, raise `loss.kl_coefficient`; read "
        "in the tables of samples what is rewarded, and bring pairs in which it is rejected",
    ),
    Condition(
        "dead reward",
        ("reward",),
        _dead_reward,
        Action.STOP,
        "start from a model that answers some problems right (more `cold_start.examples` or steps), take easier "
        "problems (`curation.difficulty`), see in the tables of samples whether the verifier refuses good answers",
    ),
    Condition(
        "no spread",
        ("no_spread",),
        _no_spread,
        Action.STOP,
        "raise `group`, set `temperature` to 1; by `curation.difficulty` take harder problems where most answers are "
        "right, easier ones where most are wrong",
    ),
)

WATCHED = frozenset(_WATCHED)
BESIDE = frozenset({"gap_max", "importance_capped", "unparseable", "timed_out"})
"""Figures that no bound is on; they stand beside the evidence."""
