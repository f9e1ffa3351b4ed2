"""GRPO: reinforcement learning without a critic, on rewards that can be checked.

Source: DeepSeekMath (arXiv 2402.03300, section 4) and DeepSeek-R1 (arXiv 2501.12948, section 2.2).
A step is four calls: rollout, score, advantages, update (`Step.run`). Everything else here is what surrounds them:
the order of the data, health, a monitor, checkpoints.
All random numbers come from the seed, the place in the data and the step, so a run that is killed and resumed ends in
the same bits as one that was not.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import EXPECTED, RunStoppedError
from pipeline.job import UNMETERED, Log, Meter, Table
from pipeline.model.decoder import Decoder
from pipeline.model.flops import arithmetic
from pipeline.params import GRPO, Distributed
from pipeline.progress import Progress
from pipeline.rl.advantage import advantages
from pipeline.rl.conditions import Action
from pipeline.rl.figures import generated_tokens, rollout_figures, sample_table
from pipeline.rl.health import Diagnosis, Health
from pipeline.rl.learner import Learner
from pipeline.rl.monitor import Monitor
from pipeline.rl.rollout import Generate, Line, rollout
from pipeline.rl.scoring import Judge, ScoredGroup, score
from pipeline.rl.trajectories import Trajectory
from pipeline.rl.work import step_work
from pipeline.training.checkpoints import Checkpoint, Checkpoints, until_checkpoint
from pipeline.training.engine import ONE
from pipeline.world import led

logger = logging.getLogger(__name__)

SEVERITY = {action: rank for rank, action in enumerate((Action.SKIP, Action.ROLL_BACK, Action.STOP))}

SMOOTHING = 0.9
"""Share of the old value in running means: about the last 10 steps."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did."""

    figures: dict[str, float]
    groups: list[ScoredGroup]
    place: int  # in the line of questions, after the step
    diagnosis: Diagnosis | None
    trajectories: list[Trajectory]


@dataclass(frozen=True, slots=True)
class Step:
    """What a step is made of: who writes the completions, who judges them, who learns from them."""

    questions: Line
    generate: Generate
    judge: Judge
    learner: Learner
    health: Health
    options: GRPO

    def run(self, number: int, place: int) -> Outcome:
        """Step `number`, counted from 0, on the questions from `place` on.

        With `resample_rounds`, groups without spread are made up for by new questions' groups, as often as that
        (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2).
        """
        options, clock = self.options, Clock()
        groups: list[ScoredGroup] = []
        missing = options.prompts
        for _ in range(1 + options.resample_rounds):
            with clock("rollout_s"):
                written = rollout(self.generate, self.questions.take(place, missing, number), place, options)
            with clock("score_s"):
                groups += score(self.judge, written)
            place += missing
            missing = options.prompts - sum(group.has_spread for group in groups)
            if missing == 0:
                break
        diagnoses: list[Diagnosis | None] = []

        def permit(figures: Mapping[str, float]) -> bool:
            diagnoses.append(self.health.examine(number, figures))
            return diagnoses[-1] is None

        trajectories = advantages(groups, scale_by_std=options.scale_by_std)
        with clock("update_s"):
            updated = self.learner.update(trajectories, number, permit)
        figures = {**rollout_figures(groups, options.prompts), **updated, **clock.seconds}
        figures["generated_tokens_per_s"] = generated_tokens(groups) / figures["rollout_s"]
        figures["trained_tokens_per_s"] = figures["trained_tokens"] / figures["update_s"]
        told = {name: value for name, value in figures.items() if name not in ("loss", "gradient_norm")}
        diagnoses.append(self.health.examine(number, told))
        return Outcome(figures, groups, place, _worst([one for one in diagnoses if one is not None]), trajectories)


class Clock:
    """Seconds spent in named phases, added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Summary:
    """Where a run stands. A function of its inputs: no times."""

    right: float = 0.0  # this and the next two: running means over samples
    reward: float = 0.0
    length: float = 0.0
    steps: int = 0
    place: int = 0  # in the line of questions
    samples: int = 0
    trained_tokens: int = 0

    def after(self, outcome: Outcome) -> "Summary":
        share = SMOOTHING if self.steps else 0.0
        smoothed = {
            name: share * getattr(self, name) + (1 - share) * outcome.figures[name]
            for name in ("right", "reward", "length")
        }
        return Summary(
            **smoothed,
            steps=self.steps + 1,
            place=outcome.place,
            samples=self.samples + int(outcome.figures["samples"]),
            trained_tokens=self.trained_tokens + int(outcome.figures["trained_tokens"]),
        )


def train(
    policy: Decoder,
    questions: Line,
    options: GRPO,
    *,
    generate: Generate,
    judge: Judge,
    health: Health,
    seed: int,
    scratch: Path,
    log: Log,
    table: Table,
    title: str,
    meter: Meter = UNMETERED,
    monitor: Monitor | None = None,
    distributed: Distributed = ONE,
    acting: Decoder | None = None,
) -> Summary:
    """Train `policy`, which `generate` samples from, in place; resumes from the newest whole checkpoint in `scratch`.

    Of several ranks all call this alike; the first one's judge is asked. `acting` is what `generate` samples from,
    where that is not the policy itself. `scratch` must be this work's own. Raises RunStoppedError where the run's
    health gives it up, what `meter` raises after a checkpoint, and what a judge that will not go on raises; all before
    the step that was to be judged is in a checkpoint then.
    """
    flops = arithmetic(policy)
    learner = Learner(policy, options, seed, distributed, acting)
    step = Step(questions, generate, led(judge), learner, health, options)
    checkpoints = Checkpoints(scratch)
    summary = _resume(checkpoints, learner, health, monitor)
    meter.resume(summary.steps, until_checkpoint(options, summary.steps))
    with Progress(title, total=options.steps, unit="steps", done=summary.steps) as progress:
        while summary.steps < options.steps:
            if monitor is not None:
                monitor.before(summary.steps)
            try:
                outcome = step.run(summary.steps, summary.place)
            except EXPECTED:  # who judges will not go on; weights and health are as before the step
                _save(checkpoints, learner, health, monitor, summary)
                raise
            if monitor is not None:
                outcome = _seen(outcome, summary.steps, monitor, health)
            meter.count(step_work(flops, outcome.groups, outcome.trajectories, options))
            log(outcome.figures, summary.steps)
            if summary.steps % options.table_every == 0:
                table("samples", summary.steps, sample_table(outcome.groups))
            summary = summary.after(outcome)
            progress.advance(1, _note(outcome.figures))
            if outcome.diagnosis is not None:
                _act(outcome.diagnosis, checkpoints, learner, health)
            elif summary.steps % options.checkpoint_every == 0:
                _save(checkpoints, learner, health, monitor, summary)
                meter.keep(summary.steps, options.steps)
    learner.finish(scratch)
    return summary


def _seen(outcome: Outcome, step: int, monitor: Monitor, health: Health) -> Outcome:
    """The outcome with what the monitor saw after the step, and what health says to that."""
    figures = monitor.after(step)
    found = [one for one in (outcome.diagnosis, health.examine(step, figures)) if one is not None]
    return replace(outcome, figures={**outcome.figures, **figures}, diagnosis=_worst(found))


def _worst(found: Sequence[Diagnosis]) -> Diagnosis | None:
    return max(found, key=lambda diagnosis: SEVERITY[diagnosis.action], default=None)


def _act(diagnosis: Diagnosis, checkpoints: Checkpoints, learner: Learner, health: Health) -> None:
    """Do about a step what its diagnosis says. A skipped update was left out already.

    Going back restores weights, optimiser and reference. Steps and data are counted on, so the run stays bounded and
    meets other questions.
    """
    if diagnosis.action is Action.STOP:
        raise RunStoppedError(str(diagnosis))
    logger.warning("%s", diagnosis)
    if diagnosis.action is Action.ROLL_BACK:
        checkpoint = checkpoints.newest()
        assert checkpoint is not None, "the first one is written before the first step"
        learner.load_state(checkpoint.state)
        health.roll_back(checkpoint.step - 1)


def _resume(checkpoints: Checkpoints, learner: Learner, health: Health, monitor: Monitor | None) -> Summary:
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        _save(checkpoints, learner, health, monitor, Summary())  # to go back to
        return Summary()
    learner.load_state(checkpoint.state)
    health.restore(checkpoint.progress["health"])
    if monitor is not None:
        monitor.restore(checkpoint.progress["monitor"])
    return Summary(**checkpoint.progress["summary"])


def _save(
    checkpoints: Checkpoints, learner: Learner, health: Health, monitor: Monitor | None, summary: Summary
) -> None:
    progress: dict[str, Any] = {"summary": asdict(summary), "health": health.state()}
    if monitor is not None:
        progress["monitor"] = monitor.state()
    checkpoints.save(Checkpoint(summary.steps, progress, learner.state()))


def _note(figures: Mapping[str, float]) -> str:
    return (
        f"reward {figures['reward']:.3f} right {figures['right']:.0%} "
        f"{figures['generated_tokens_per_s']:,.0f} + {figures['trained_tokens_per_s']:,.0f} tokens/s"
    )
