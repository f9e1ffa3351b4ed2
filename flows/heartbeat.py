"""A stage on another machine tells that it lives, and hears whether it is still wanted.

Prefect itself notices neither: a flow run whose machine is gone says "Running" for ever, and its own remedy, an
automation on heartbeat events, is known to crash runs that are well (PrefectHQ/prefect#21932). So the stage's flow
run counts its beats in a label of its own, and who has sent it (flows/sending.py) looks at that label whenever it
looks at the state. With each beat the stage reads two states: of its own flow run, which is cancelled, or crashed by
a sender that took it for dead; and of the recipe's, whose worker may be gone and cancel nobody any more.

A server that does not answer changes nothing: the stage goes on, and beats again when the server is back.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.logging import get_run_logger

from flows.supervise import stop_all

LABEL = "r1flow.beats"
BEAT = 5.0  # seconds; with the supervisor's grace of twice 10 s, what is cancelled is gone within 30 s
UNREACHABLE = (httpx.HTTPError, PrefectException, OSError)


class Heart:
    """`reason`: why the stage has been stopped from outside; empty while it is wanted."""

    def __init__(self, run: UUID, recipe: UUID | None) -> None:
        self._run, self._recipe = run, recipe
        self._over = threading.Event()
        self._logger = get_run_logger()
        self.reason = ""

    @property
    def stopped(self) -> bool:
        return bool(self.reason)

    def beat_on(self) -> None:
        """Until `rest`, or until the stage is no longer wanted."""
        beats = 0
        while not self._over.is_set() and not self.stopped:
            try:
                with get_client(sync_client=True) as client:
                    while not self._over.is_set():
                        if reason := self._unwanted(client):  # first: of a deleted run labels tell a mere HTTP error
                            self.reason = reason
                            stop_all()
                            return
                        beats += 1
                        client.update_flow_run_labels(self._run, {LABEL: beats})
                        self._over.wait(BEAT)
            except ObjectNotFound:
                self.reason = "this flow run, or the recipe's, was deleted"
                stop_all()
                return
            except UNREACHABLE as error:
                self._logger.warning("Prefect's server does not answer, the stage goes on: %s", error)
                self._over.wait(BEAT)

    def rest(self) -> None:
        self._over.set()

    def _unwanted(self, client: SyncPrefectClient) -> str:
        own = client.read_flow_run(self._run).state
        if own is not None and (own.is_final() or own.is_cancelling()):
            return f"this flow run is {own.name}"
        recipe = None if self._recipe is None else client.read_flow_run(self._recipe).state
        if recipe is not None and (recipe.is_cancelling() or recipe.is_cancelled()):
            return f"the recipe is {recipe.name}"
        return ""


@contextmanager
def beating(run: UUID, recipe: UUID | None) -> Iterator[Heart]:
    """Beat while the block runs, and stop its commands (flows.supervise) once they are no longer wanted."""
    heart = Heart(run, recipe)
    thread = threading.Thread(target=heart.beat_on, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield heart
    finally:
        heart.rest()
