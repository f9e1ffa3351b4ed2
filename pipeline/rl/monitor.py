"""The monitor for reward hacking: does what the preference model rewards go with what is meant?

Optimised for long enough, a policy finds what pleases a reward model and nobody else (Gao et al. 2022, arXiv
2210.10760). Two things that the preference reward does not pay for tell: accuracy on checkable problems that this stage
does not train on, and the agreement of the preference model with a witness, a model like it that was trained on other
pairs from another seed (Coste et al. 2023, arXiv 2310.02743: models that agree where they were trained part where they
are exploited). Both are measured when the preference reward comes in, and again every few steps; pipeline/rl/
conditions.py judges the differences.

Different from the textbook: agreement is not that on the present policy's samples among each other. As the policy gets
better they become alike, and two sound models rank like answers by chance. Each present sample is compared with the
samples of the policy as it was when the reward came in, and only pairs count that the preference model tells clearly
apart.
All differences are paired, problem by problem, and the same random numbers draw the samples at each look.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from pipeline import params
from pipeline.generation.requests import Completion, Request
from pipeline.params import GRPO, Sampling
from pipeline.rl.general import Opinion
from pipeline.rl.rollout import Generate, Question
from pipeline.rl.scoring import Judge

CLEAR = 0.1
"""Difference of preference, which lies between 0 and 1, from which on two answers count as told apart."""


class Bounds(Protocol):
    """A mean and its 95 % interval."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...


Interval = Callable[[Sequence[float]], Bounds]
"""Of the mean of values, each of one problem or prompt."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is looked at, and who judges it."""

    problems: Sequence[Question]  # checkable
    prompts: Sequence[Question]  # general
    verdicts: Judge
    preference: Opinion
    witness: Opinion


@dataclass(frozen=True, slots=True)
class Answers:
    """What is thought of the samples (prompts × samples) of the general prompts."""

    preference: list[list[float]]
    witness: list[list[float]]


@dataclass(frozen=True, slots=True)
class Look:
    """One value for each problem or prompt, in order."""

    right: list[float]  # share of its samples
    preference: list[float]  # mean over its samples
    alike: list[float | None]  # share of its clear pairs that both models rank alike; None where there are none


@dataclass(frozen=True, slots=True)
class Start:
    """What was when the preference reward came in."""

    step: int
    answers: Answers  # what later samples are compared with
    look: Look


class Monitor:
    """Looks at the policy that `generate` samples from."""

    def __init__(
        self,
        watched: Watched,
        options: params.Monitor,
        train: GRPO,
        first_step: int,
        generate: Generate,
        interval: Interval,
    ) -> None:
        """`first_step` is the first one with the preference reward."""
        self._watched, self._options, self._interval = watched, options, interval
        self._generate, self._first_step, self._last_step = generate, first_step, train.steps - 1
        self._sampling = Sampling(temperature=train.temperature, top_p=1.0, max_new_tokens=train.max_new_tokens)
        self._start: Start | None = None

    def before(self, step: int) -> None:
        """To be told before every step; measures what later looks are compared with when the reward comes in."""
        if step == self._first_step and self._start is None:
            answers = self._answers("then")
            self._start = Start(step, answers, self._look(answers))

    def after(self, step: int) -> dict[str, float]:
        """To be told after every step. Returns figures, none where no look is due."""
        since = step - self._first_step + 1
        if since < 1 or (since % self._options.every and step != self._last_step):
            return {}
        assert self._start is not None, "`before` was told of the first step, or `restore` of what it measured"
        begun = time.perf_counter()
        figures = self._compare(self._start, self._look(self._start.answers))
        return figures | {"monitor_s": time.perf_counter() - begun}

    def state(self) -> dict[str, Any] | None:
        """Everything remembered, as JSON."""
        return None if self._start is None else asdict(self._start)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state` returned."""
        if state is not None:
            self._start = Start(state["step"], Answers(**state["answers"]), Look(**state["look"]))

    def _look(self, then: Answers) -> Look:
        samples = self._samples(self._watched.problems, "now")
        verdicts = [score.verdict == "right" for score in self._watched.verdicts(samples)]
        now = self._answers("now")
        return Look(
            right=np.reshape(verdicts, (-1, self._options.samples)).mean(1).tolist(),
            preference=np.mean(now.preference, axis=1).tolist(),
            alike=[
                alike(np.subtract.outer(*preference).ravel(), np.subtract.outer(*witness).ravel())
                for preference, witness in zip(
                    zip(now.preference, then.preference, strict=True),
                    zip(now.witness, then.witness, strict=True),
                    strict=True,
                )
            ],
        )

    def _compare(self, start: Start, now: Look) -> dict[str, float]:
        rise = self._interval(np.subtract(now.preference, start.look.preference).tolist())
        fall = self._interval(np.subtract(start.look.right, now.right).tolist())
        figures = {
            "monitor/since": start.step,
            "monitor/preference": float(np.mean(now.preference)),
            "monitor/preference_rise": rise.mean,
            "monitor/preference_rise_low": rise.low,
            "monitor/accuracy": float(np.mean(now.right)),
            "monitor/accuracy_fall": fall.mean,
            "monitor/accuracy_fall_low": fall.low,
        }
        both = [
            (before, after)
            for before, after in zip(start.look.alike, now.alike, strict=True)
            if before is not None and after is not None
        ]
        if both:
            fall = self._interval([before - after for before, after in both])
            figures |= {
                "monitor/agreement": float(np.mean([after for _, after in both])),
                "monitor/agreement_fall": fall.mean,
                "monitor/agreement_fall_low": fall.low,
            }
        return figures

    def _answers(self, name: str) -> Answers:
        samples = self._samples(self._watched.prompts, name)
        return Answers(
            *(
                np.reshape(judge(samples), (-1, self._options.samples)).tolist()
                for judge in (self._watched.preference, self._watched.witness)
            )
        )

    def _samples(self, questions: Sequence[Question], name: str) -> list[tuple[Question, Completion]]:
        """Samples of each question beside each other; the name fixes their random numbers."""
        count = self._options.samples
        requests = [
            Request(question.prompt, count, self._sampling, f"monitor {name}:{question.problem.id}")
            for question in questions
        ]
        done = {(completion.request, completion.number): completion for completion in self._generate(requests)}
        return [(question, done[place, number]) for place, question in enumerate(questions) for number in range(count)]


def alike(preference: np.ndarray, witness: np.ndarray) -> float | None:
    """Share of pairs ranked alike, from both models' differences (pairs,); only pairs that are CLEAR to the first."""
    clear = np.abs(preference) > CLEAR
    if not clear.any():
        return None
    return float((np.sign(preference) == np.sign(witness))[clear].mean())
