"""What the server does by itself where no flow can: automations, as code.

A flow's own hooks run in its process and go with it. These run on the server, from the events of runs, and so hear of a
process that was killed, of a run that no worker takes, of an approval that nobody gave.

Silence is a doubtful sign: a heartbeat may come after the event that ends its run (PrefectHQ/prefect#21932), and those
that are sent while the server is away are lost. So the state is not forced, what has ended stays as it ended, and a run
that was well ends as it does; and stages, which have a sender that watches them more closely (flows/sending.py), are
left to it.
"""

from datetime import timedelta

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CancelFlowRun, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

SILENT = timedelta(minutes=10)  # twenty heartbeats, by prefect.yaml; a server is seldom away for so long
LATE = timedelta(hours=1)
EXPIRED = "Expired"  # name of the state of an approval that nobody gave
NEVER_RESUMED = "The flow was paused and never resumed."  # how the server words it
ENDED = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling")
RUN = "prefect.resource.id"


def _events(*states: str) -> set[str]:
    return {f"prefect.flow-run.{state}" for state in states}


def _runs(**labels: str) -> ResourceSpecification:
    return ResourceSpecification({RUN: "prefect.flow-run.*", **labels})


def _of_flows(*names: str) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": list(names)})


AUTOMATIONS = (
    AutomationCore(
        name="r1flow: crash silent runs",
        description=f"A run without a heartbeat for {SILENT.seconds} s has lost its process or its machine.",
        trigger=EventTrigger(
            after=_events("heartbeat"),
            expect=_events("heartbeat", *ENDED),
            match=_runs(),
            match_related=_of_flows("recipe", "curate", "evaluate", "promote"),
            for_each={RUN},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENT,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                force=False,
                message=f"No heartbeat for {SILENT.seconds} s: its process or its machine is gone.",
            )
        ],
    ),
    AutomationCore(
        name="r1flow: cancel late daily runs",
        description="A daily run that no worker has begun within an hour is left to the next day's.",
        trigger=EventTrigger(
            after=_events("Late"),
            expect=_events("Pending", "Running", *ENDED),
            match=_runs(),
            match_related=_of_flows("curate", "evaluate"),
            for_each={RUN},
            posture=Posture.Proactive,
            threshold=1,
            within=LATE,
        ),
        actions=[CancelFlowRun(type="cancel-flow-run")],  # the client sends no type that is left to its default
    ),
    AutomationCore(
        name="r1flow: end unanswered approvals",
        description="An approval whose deadline has passed is no failure: the version stays a candidate.",
        trigger=EventTrigger(
            expect=_events("Failed"),
            match=_runs(**{"prefect.state-message": NEVER_RESUMED}),
            match_related=_of_flows("follow"),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CANCELLED,
                name=EXPIRED,
                message="Nobody decided before the deadline: the version stays a candidate.",
                force=True,
            )
        ],
    ),
)


async def apply_automations(client: PrefectClient) -> None:
    """Make what is missing and bring up to date what differs, by name. One that was switched off stays off.

    What is as it should be is left alone: an update makes the server forget the runs that it waits for.
    """
    for wanted in AUTOMATIONS:
        found = await client.read_automations_by_name(wanted.name)
        if not found:
            await client.create_automation(wanted)
        elif _content(found[0]) != _content(wanted):
            assert found[0].id is not None
            await client.update_automation(found[0].id, wanted.model_copy(update={"enabled": found[0].enabled}))


def _content(automation: AutomationCore) -> dict[str, object]:
    return automation.model_dump(include={"name", "description", "trigger", "actions"})
