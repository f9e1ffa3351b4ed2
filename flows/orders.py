"""The next stage for a worker that has just done one.

The way to a worker costs some seconds: the worker looks for work, Prefect starts two processes, a folder is made, DVC's
client for S3 is imported. So the flow run of a stage (flows/stage.py) that has come to its end waits a moment, and who
has sent it (flows/sending.py) may give it one more stage of the same pool: an `Order`, Prefect's input to a flow run.
What its stages have made is in the folder already. Who decides is the sender alone, stage by stage.
"""

from collections.abc import Iterator
from typing import Any

from prefect.input import RunInput
from prefect.logging import get_run_logger

from flows.heartbeat import UNREACHABLE

PATIENCE = 30.0  # seconds that a flow run waits; the sender needs one, and says when there is nothing to wait for
POLL = 0.2  # seconds


class Order(RunInput):
    """`name`: the stage that comes next; empty: none does. `records`: of the stages before it (flows/travel.py)."""

    name: str
    records: dict[str, Any]


NONE = Order(name="", records={})


def orders() -> Iterator[Order]:
    """What the present flow run is told to do, until nobody tells it anything any more."""
    try:
        for order in Order.receive(timeout=PATIENCE, poll_interval=POLL):
            if not order.name:
                return
            yield order
    except UNREACHABLE as error:
        get_run_logger().warning("Prefect's server does not answer, so this is the last stage here: %s", error)
