"""Who is to be champion: `promote` does what a person says, `follow` asks one.

`follow` suspends its run: no process and no worker is held while it waits. Resumed, it begins anew and comes to the
same question, which by then has an answer. So that it is the same, the version that it asks about becomes a parameter
of the run. A deadline that passes ends the run (flows/automations.py).
"""

import math
from pathlib import Path
from typing import Annotated
from uuid import UUID

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed
from pydantic import Field

from flows import artifacts
from flows.checkout import project_clone, removed_afterwards
from flows.names import asked
from flows.promotion import emit
from pipeline.errors import GateFailedError
from pipeline.figures import percent
from pipeline.job import PARAMS_FILE
from pipeline.params import Params, load_params
from pipeline.promotion.hand import Hand, champion_model
from pipeline.promotion.ledger import Entry
from pipeline.tracking import Aliases, Version

SECONDS = 3600.0
QUESTION = "approval"


class Decision(RunInput):
    """What the form on the run's page asks for."""

    version: int
    promote: bool = True
    why: str = ""


@flow(name="promote", flow_run_name="promote {name} {version}", timeout_seconds=SECONDS)
def promote(name: str, version: int, why: str = "by hand") -> None:
    """Make a version of the registered model `name` the champion, as `r1flow promote` does.

    Raises InputError where there is no such version, GateFailedError where the server that follows has refused it.
    """
    with removed_afterwards(Path.cwd()):
        make_champion(load_params(Path.cwd() / PARAMS_FILE), name, version, why)


@flow(name="follow", flow_run_name=asked, timeout_seconds=SECONDS)
def follow(version: int | None = None, hours: Annotated[float, Field(gt=0)] | None = None) -> State:
    """Ask whether a candidate is to be champion, and wait for the answer.

    `version`: of the model that `r1flow serve` follows; None: its newest candidate. `hours`: until the question lapses;
    None: operation.approval.hours.
    """
    with removed_afterwards(Path.cwd()):
        params = load_params(Path.cwd() / PARAMS_FILE)
        aliases, model = Aliases(params.tracking, project_clone()), champion_model(params)
        candidate = aliases.candidate(model) if version is None else aliases.version(model, version)
        champion = aliases.champion(model)
        if candidate is None or (champion is not None and candidate.number == champion.number):
            return Completed(message=f"{model}: no candidate but the champion")
        if version is None:
            keep_to(candidate.number)
        asked = question(aliases, candidate, champion)
        artifacts.note("approval", asked, f"Is {model} version {candidate.number} to be champion?")
        form = Decision.with_initial_data(description=asked, version=candidate.number, promote=True, why="")
        deadline = params.operation.approval.hours if hours is None else hours
        decision = suspend_flow_run(form, timeout=math.ceil(deadline * 3600), key=QUESTION)
        if not decision.promote:
            return Cancelled(name="Declined", message=f"Version {decision.version} stays a candidate: {decision.why}")
        make_champion(params, model, decision.version, decision.why or "approved on the run's page")
        return Completed(message=f"{model} version {decision.version} is the champion")


def keep_to(version: int) -> None:
    """By the time this run is resumed another version may be the newest."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(
            UUID(str(runtime.flow_run.id)), parameters={**runtime.flow_run.parameters, "version": version}
        )


def make_champion(params: Params, model: str, version: int, why: str) -> None:
    """Raises InputError where there is no such version, GateFailedError where a server that follows refused it."""
    entry = Hand(project_clone(), params, announce).promote(model, version, why)
    if entry.event.kind == "refused" or entry.event.after.version != version:
        raise GateFailedError(f"{model} version {version}: refused: {entry.event.why}")
    get_run_logger().info("%s version %s is the champion", model, version)


def announce(entry: Entry) -> None:
    if artifacts.on_server():
        emit(entry)


def question(aliases: Aliases, candidate: Version, champion: Version | None) -> str:
    """Both versions beside each other, as Markdown."""
    rows = ["| | version | pass@1 | 95 % interval | release |", "|---|---|---|---|---|"]
    for role, one in (("candidate", candidate), ("champion", champion)):
        if one is None:
            continue
        figures = aliases.figures(one)
        bounds = [figures.get(f"pass_at_1{end}", math.nan) for end in ("", "_low", "_high")]
        share, low, high = (percent(bound) for bound in bounds)
        rows.append(f"| {role} | {one.number} | {share} | {low} to {high} | `{one.digest[:12]}` |")
    return "\n".join([f"# {candidate.model}: is version {candidate.number} to be champion?", "", *rows])
