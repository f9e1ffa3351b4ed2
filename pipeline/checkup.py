"""How a run fared: its logged figures are put before pipeline/rl/health.py once more, step by step.

It is judged by the bounds that it ran with, which are among its params, and by the defaults where it had none. Findings
are those of the run itself, except that here nobody acts on them: a condition is found anew at each step until it
passes or the run goes back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pipeline import params
from pipeline.errors import InputError
from pipeline.job import PARAMS_FILE
from pipeline.rl.conditions import WATCHED
from pipeline.rl.health import Diagnosis, Health
from pipeline.tracking import Recorded, read_run


@dataclass(frozen=True)
class Finding:
    """One condition over successive steps."""

    first: Diagnosis
    last_step: int

    @property
    def steps(self) -> str:
        return str(self.last_step) if self.first.step == self.last_step else f"{self.first.step} to {self.last_step}"


@dataclass(frozen=True)
class Report:
    """What was found in a run; it was healthy where there are no findings."""

    run_id: str
    stage: str
    steps: int
    findings: tuple[Finding, ...]

    @property
    def summary(self) -> str:
        result = "conditions found" if self.findings else "healthy"
        return f"{self.stage}, run {self.run_id[:8]}, {self.steps} steps: {result}"

    def table(self) -> Table:
        """Steps, condition, evidence of the first of them, what to try."""
        table = Table("steps", "condition", "evidence", "to try")
        for finding in self.findings:
            evidence = "\n".join(str(entry) for entry in finding.first.evidence)
            table.add_row(finding.steps, finding.first.condition, Text(evidence), Text(finding.first.advice))
        return table


def check_up(root: Path, run: str) -> Report:
    """Examine a run by its id, the beginning of it, or its stage.

    Raises InputError where there is no such run, or none of its figures say anything about health.
    """
    recorded = read_run(params.load_params(root / PARAMS_FILE).tracking, root, run)
    if not any(WATCHED & figures.keys() for _, figures in recorded.steps):
        who = f"run {recorded.run_id[:8]} of stage {recorded.stage}"
        raise InputError(f"{run}: {who} has no step to examine: it trains nothing, or ended before its first one")
    steps = len({step for step, _ in recorded.steps})
    return Report(recorded.run_id, recorded.stage, steps, findings(recorded))


def findings(recorded: Recorded) -> tuple[Finding, ...]:
    """What health says to a run's figures in the order in which they were logged."""
    health, found = Health(_options(recorded)), list[Finding]()
    newest: tuple[int, Mapping[str, float]] | None = None
    for step, figures in recorded.steps:
        again = newest is not None and step == newest[0] and not newest[1].keys().isdisjoint(figures)
        if newest is not None and (step < newest[0] or again):
            health.roll_back(step - 1)
        newest = (step, figures)
        diagnosis = health.examine(step, figures)
        if diagnosis is None:
            continue
        if found and found[-1].first.condition == diagnosis.condition and found[-1].last_step in (step - 1, step):
            found[-1] = replace(found[-1], last_step=step)
        else:
            found.append(Finding(diagnosis, step))
    return tuple(found)


def _options(recorded: Recorded) -> params.Health:
    """The bounds that a run was held to: `<stage>.health.…` among its params."""
    logged = {name: recorded.params.get(f"{recorded.stage}.health.{name}") for name in params.Health.model_fields}
    return params.Health.model_validate_strings({name: text for name, text in logged.items() if text is not None})
