"""The end of a recipe: whoever is to approve its candidate is asked, as operation.approval says.

The recipe does not wait: asking is a run of the deployment `follow`, which holds no worker while it waits.
"""

from pathlib import Path

from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from flows import artifacts
from flows.checkout import project_clone
from pipeline.job import PARAMS_FILE
from pipeline.params import load_params
from pipeline.promotion.hand import champion_model
from pipeline.tracking import Aliases

FOLLOW = "follow/follow"


def ask(root: Path) -> str:
    """Ask about the newest candidate of the project at `root`, once for a version. Returns one line for the reader.

    Call it in a flow, after the releases were registered.
    """
    params = load_params(root / PARAMS_FILE)
    approval, model = params.operation.approval, champion_model(params)
    if params.tracking.uri is None:
        return "nothing to approve: the registry went with this run's folder; tracking.uri is to name a server"
    aliases = Aliases(params.tracking, project_clone())
    candidate, champion = aliases.candidate(model), aliases.champion(model)
    if candidate is None or (champion is not None and candidate.number == champion.number):
        return f"{model}: nothing to approve: the newest version is the champion"
    what = f"{model} version {candidate.number} is a candidate"
    if approval.by == "alias":
        said = f"{what}: the alias `champion` decides (the registry's page, `r1flow promote`, deployment promote)"
        artifacts.note("approval", f"# {said}", "Nobody was asked: operation.approval.by is alias.")
        return said
    run = run_deployment(
        FOLLOW,
        parameters={"version": candidate.number, "hours": approval.hours},
        timeout=0,
        as_subflow=False,
        idempotency_key=f"approve-{candidate.digest}",
    )
    assert isinstance(run, FlowRun)
    return f"{what}: run {run.name} waits up to {approval.hours:g} h for approval"
