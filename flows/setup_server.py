"""`python -m flows.setup_server [--gpus N]`: what prefect.yaml's deployments need on a Prefect server.

Work pools, their queues, limits and automations, all by name: run again it changes what differs, and nothing else.
A stage in the pool `gpu` takes a slot of the global limit of that name (flows/stage.py).
The deployments themselves come from `prefect deploy --all`, which wants the pools to be there.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

from flows.automations import apply_automations
from flows.server import require_answer
from pipeline.errors import EXIT_INPUT, InputError

CPU, GPU = "cpu", "gpu"
POOLS = {
    CPU: "Runs that need no GPU, and the recipe, which waits here for its stages: a limit of 1 would stop it for ever.",
    GPU: "Stages that need a GPU: as many runs at a time as there are GPUs.",
}
QUEUES = {
    "urgent": (1, "What a person waits for: promotion, approval."),
    "default": (2, "The recipe and its stages."),
    "daily": (3, "What comes by itself every day: curation, the champion's evaluation."),
}
"""Name → priority and what runs in it; a pool's workers take from the first queue that has something."""


async def set_up(gpus: int) -> None:
    """Bring the server at PREFECT_API_URL up to date."""
    async with get_client() as client:
        for name, description in POOLS.items():
            await _pool(client, name, description, gpus if name == GPU else None)
            for queue, (priority, purpose) in QUEUES.items():
                await _queue(client, name, queue, priority, purpose)
        await client.upsert_global_concurrency_limit_by_name(GPU, gpus)
        await apply_automations(client)


async def _pool(client: PrefectClient, name: str, description: str, limit: int | None) -> None:
    """A pool that is there keeps its type and, where none is given here, its limit."""
    wanted: dict[str, Any] = {"description": description, **({} if limit is None else {"concurrency_limit": limit})}
    try:
        pool = await client.read_work_pool(name)
    except ObjectNotFound:
        await client.create_work_pool(WorkPoolCreate(name=name, type="process", **wanted))
        return
    if any(getattr(pool, key) != value for key, value in wanted.items()):
        await client.update_work_pool(name, WorkPoolUpdate(**wanted))


async def _queue(client: PrefectClient, pool: str, name: str, priority: int, description: str) -> None:
    try:
        queue = await client.read_work_queue_by_name(name, work_pool_name=pool)
    except ObjectNotFound:
        queue = await client.create_work_queue(name, work_pool_name=pool)
    if (queue.priority, queue.description) != (priority, description):
        await client.update_work_queue(queue.id, priority=priority, description=description)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.setup_server", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="of all workers of the pool gpu (default 1)")
    options = parser.parse_args(arguments)
    if options.gpus < 1:
        parser.error(f"--gpus {options.gpus}: must be at least 1")
    if "PREFECT_API_URL" not in os.environ:
        print("PREFECT_API_URL: not set: must be the server's address, as http://127.0.0.1:4200/api", file=sys.stderr)
        return EXIT_INPUT
    try:
        require_answer(os.environ["PREFECT_API_URL"])
        asyncio.run(set_up(options.gpus))
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_INPUT
    print(f"pools {', '.join(POOLS)}, each with the queues {', '.join(QUEUES)}; GPUs: {options.gpus}; automations set")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
