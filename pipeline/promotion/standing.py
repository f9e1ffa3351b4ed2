"""How the champion stands: asked held-out problems again, against what was known of it when it was registered.

The same release can answer worse than it did: on problems from newer data, by another version of a library, on another
machine. Different from the follower's trial, which compares a new version with the champion, this compares the champion
with its own past; the problems need not be the same ones, so the difference is not paired.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import GateFailedError, InputError
from pipeline.evaluation.choice import choose
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.metrics import measure, overall, per_problem, with_bounds
from pipeline.evaluation.models import Entry
from pipeline.files import digest
from pipeline.job import PARAMS_FILE, artifacts
from pipeline.params import load_params
from pipeline.promotion.copies import fetch
from pipeline.promotion.hand import champion_model
from pipeline.records import Problem, read_table
from pipeline.tracking import Aliases, Description, Tracker, Version

NAME = "champion"  # its folder under runs/, its run in MLflow
FIGURE = "pass_at_1"
PROBLEMS = "problems.parquet"


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one version, now."""

    version: Version
    now: Interval  # pass@1
    problems: int
    registered: float  # pass@1 at its registration
    fall: float  # below that, which is allowed

    @property
    def floor(self) -> float:
        return self.registered - self.fall

    def figures(self) -> dict[str, float]:
        return {
            **with_bounds(FIGURE, self.now),
            "registered": self.registered,
            "floor": self.floor,
            "problems": self.problems,
            "version": self.version.number,
        }

    def require(self) -> None:
        """Raises GateFailedError where the champion lies below its floor."""
        if self.now.mean < self.floor - 1e-9:
            raise GateFailedError(
                f"{self.version.model} version {self.version.number} has pass@1 {self.now.mean:.1%} (95 % interval "
                f"{self.now.low:.1%} to {self.now.high:.1%}) on {self.problems} held-out problems and had "
                f"{self.registered:.1%} when it was registered; rule: not below {self.floor:.1%} (operation.fall)"
            )


def stand(root: Path, home: Path) -> Standing:
    """Evaluate the champion on the held-out problems of the project at `root`, and log that to MLflow.

    `home` is where the registry lies if params name no server. Raises InputError where there is no champion, no figure
    of its registration or no curated data, ConnectionError where the registry does not answer.
    """
    params = load_params(root / PARAMS_FILE)
    aliases, model = Aliases(params.tracking, home), champion_model(params)
    champion = aliases.champion(model)
    if champion is None:
        raise InputError(f"{model}: has no champion: `r1flow promote {model} VERSION` makes one")
    registered = aliases.figures(champion).get(FIGURE)
    if registered is None:
        raise InputError(f"{model} version {champion.number}: its registration has no {FIGURE} to compare with")
    file = artifacts(root, "curation") / PROBLEMS
    if not file.is_file():
        raise InputError(f"{file}: missing; run stage curation first (`r1flow run --until curation`)")
    problems = choose(read_table(file, Problem), params.evaluation.problems, 0)
    if problems.is_empty():
        raise InputError(f"{file}: has no held-out problem that can be checked")
    options = params.evaluation.model_dump(mode="json", include={"problems", "samples", "sampling"})
    inputs = {f"{model}/{champion.number}": champion.digest, f"artifacts/curation/{PROBLEMS}": digest(file)}
    key = hashlib.sha256(json.dumps([options, inputs], sort_keys=True).encode()).hexdigest()[:16]
    with Tracker(params.tracking, home, Description(NAME, key, {"evaluation": options}, inputs)) as tracker:
        entry = Entry(model, fetch(aliases, champion, root), ())
        samples = evaluate([entry], problems, params.evaluation, params.seed, preference=None).samples
        now = overall(measure(per_problem(samples), params.seed), model)[FIGURE]
        standing = Standing(champion, now, problems.height, registered, params.operation.fall)
        tracker.log(standing.figures(), step=0)
    return standing
