"""The health of a run: what it finds in each step's figures, and a bounded number of times what to do about it.

Health decides and remembers; the training loop acts. It holds no tensor, reads no clock and draws no random number, so
a run that is resumed with its state decides as one that was not interrupted, and `r1flow doctor RUN` comes to the same
findings from the figures that were logged.

    diagnosis = health.examine(step, figures)  # before an update: its loss and gradient norm; afterwards: the rest
    match diagnosis and diagnosis.action:
        case Action.SKIP:       leave the update out
        case Action.ROLL_BACK:  load the checkpoint after step s; health.roll_back(s); go on with data not seen yet
        case Action.STOP:       raise RunStoppedError(str(diagnosis))

Help is bounded: skips in a row end in going back, going back ends in stopping.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import params
from pipeline.rl.conditions import BESIDE, CONDITIONS, WATCHED, Action, Case, Condition, Evidence
from pipeline.rl.past import Past


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A condition found at a step, and what to do."""

    step: int
    condition: str
    evidence: tuple[Evidence, ...]
    action: Action
    tried: str  # the help so far that did not last; empty where there was none
    advice: str

    def __str__(self) -> str:
        found = "; ".join(str(evidence) for evidence in self.evidence)
        action = f"{self.action}, after {self.tried}" if self.tried else str(self.action)
        return f"step {self.step}: {self.condition}: {found}. Now: {action}. To try: {self.advice}."


class Health:
    """Examines a run step by step."""

    def __init__(self, options: params.Health) -> None:
        self._options = options
        self._past = Past()
        self._rollbacks = 0
        self._window = 1 + max(
            options.spike_window, options.dead_steps, options.patience, options.alarm, options.max_skips
        )

    def examine(self, step: int, figures: Mapping[str, float]) -> Diagnosis | None:
        """The first condition of CONDITIONS that the figures of `step` show, or None.

        A step may be told in several calls: the figures of each of its updates before that update, the others whenever
        they are known. Figures under other names are passed over. Steps may not go backwards without `roll_back`.
        """
        watched = {name: float(value) for name, value in figures.items() if name in WATCHED}
        known = watched | {name: float(value) for name, value in figures.items() if name in BESIDE}
        self._past = self._past.with_figures(step, known, start=self._options.baseline, window=self._window)
        case = Case(step, watched, self._past, self._options)
        for condition in CONDITIONS:
            if watched.keys().isdisjoint(condition.reads):
                continue
            if evidence := condition.find(case):
                if condition.flaws:
                    self._past = self._past.with_flaw()
                action, tried = self._help(condition)
                return Diagnosis(step, condition.name, evidence, action, tried, condition.advice)
        return None

    def roll_back(self, step: int) -> None:
        """The weights are those after `step` again: what came later is forgotten, that it came to this is not.

        Not to be done by `restore` with that step's state, which would forget how often the run went back.
        """
        self._past = self._past.until(step)
        self._rollbacks += 1

    def state(self) -> dict[str, Any]:
        """Everything remembered, as JSON. It belongs into each checkpoint."""
        return {"rollbacks": self._rollbacks, "past": self._past.to_json()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._rollbacks = state["rollbacks"]
        self._past = Past.from_json(state["past"])

    def _help(self, condition: Condition) -> tuple[Action, str]:
        """What is left to be done about a condition, and what was done before."""
        action, tried = condition.remedy, ""
        if action is Action.SKIP and self._past.flaws > self._options.max_skips:
            action, tried = Action.ROLL_BACK, f"{self._options.max_skips} skipped steps in a row"
        if action is Action.ROLL_BACK and self._rollbacks >= self._options.max_rollbacks:
            back = f"going back {self._rollbacks} times"
            action, tried = Action.STOP, f"{tried} and {back}" if tried else back
        return action, tried
