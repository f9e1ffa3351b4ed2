"""A stage in several processes: torchrun starts them and watches, and ends all when one ends badly or says nothing.

Whoever runs `python -m pipeline STAGE` need not know: it returns when no rank is left, with one exit status. Nothing is
restarted here; the next run of the stage goes on from its last checkpoint. torchrun gives each rank a session of its
own, so each asks the kernel to end with this process.
On several nodes the same command runs on each, with the project folder in a file system that all of them share. The
environment says which node this is: R1FLOW_NODE_RANK, from 0 on, and R1FLOW_RENDEZVOUS, host:port of node 0.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import EXIT_BUDGET, EXIT_BUG, EXIT_GATE, EXIT_HEALTH, EXIT_INPUT, InputError
from pipeline.job import PARAMS_FILE, RANKS, read_stages
from pipeline.params import Distributed, Params, load_params
from pipeline.process import RANK_TIMEOUT, importing
from pipeline.state import amend

NODE, RENDEZVOUS = "R1FLOW_NODE_RANK", "R1FLOW_RENDEZVOUS"
SHUTDOWN = 8  # seconds between SIGTERM and SIGKILL: less than a supervisor's grace (flows/supervise.py)
MEET = 300  # seconds in which all nodes have to come
SAID = (EXIT_INPUT, EXIT_GATE, EXIT_HEALTH, EXIT_BUDGET)


def wanted(stage: str, root: Path) -> Params | None:
    """The project's params, where they ask for more than one process for this stage: one that trains."""
    if RANKS not in read_stages(root).get(stage, {}).get("params", []):
        return None
    params = load_params(root / PARAMS_FILE)
    return params if params.distributed.world > 1 else None


def first_node() -> bool:
    return os.environ.get(NODE, "0") == "0"


def launch(stage: str, root: Path, params: Params) -> int:
    """Run the stage on all ranks of this node. Returns the exit status that says how it ended."""
    where = _rendezvous(params.distributed, os.environ)
    os.environ |= _environment(params)
    with importing():
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # `_ended` says it in one line
    with TemporaryDirectory(prefix="r1flow-torchrun-") as folder:  # of logs that are not redirected to it
        config = LaunchConfig(
            min_nodes=params.distributed.nodes,
            max_nodes=params.distributed.nodes,
            nproc_per_node=params.distributed.ranks,
            run_id=stage,
            max_restarts=0,
            monitor_interval=0.2,
            shutdown_timeout=SHUTDOWN,
            logs_specs=DefaultLogsSpecs(folder),
            **where,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "pipeline", stage)
        except SignalException as signalled:
            return 128 + signalled.sigval
        except ChildFailedError as failed:
            number, failure = failed.get_first_failure()
            return _ended(stage, root, number, failure.exitcode)
    return 0


def _ended(stage: str, root: Path, number: int, status: int) -> int:
    """What it means that this rank was the first to end badly; the stage's state says so."""
    code = status if status in SAID else EXIT_BUG
    if number > 0:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        message = f"rank {number} {how}; the others were stopped. The next run goes on from the last checkpoint"
        amend(root, stage, state="failed", exit_code=code, error=message)
        print(f"{stage}: {message}", file=sys.stderr)
    return code


def _rendezvous(distributed: Distributed, environment: Mapping[str, str]) -> dict[str, Any]:
    """Where the ranks meet, as torchrun asks for it. Raises InputError where the environment does not say it."""
    if distributed.nodes == 1:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    node, endpoint = environment.get(NODE, ""), environment.get(RENDEZVOUS, "")
    if not node.isdecimal() or int(node) >= distributed.nodes:
        raise InputError(f"{NODE}: {node!r}: must be this node's number, 0 to {distributed.nodes - 1}")
    if not re.fullmatch(r"[\w.:-]+:\d+", endpoint):
        raise InputError(f"{RENDEZVOUS}: {endpoint!r}: must be host:port of node 0")
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": endpoint,
        "rdzv_configs": {"rank": int(node), "timeout": MEET},
    }


def _environment(params: Params) -> dict[str, str]:
    """What the ranks are told: how long to wait for each other, and each its part of the threads."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list is of nested levels, the first counts
    threads = int(given) if given.isdecimal() else params.machine.threads or os.cpu_count() or 1
    share = str(max(1, threads // params.distributed.ranks))
    return {
        RANK_TIMEOUT: str(60 * params.machine.rank_timeout_minutes),
        "OMP_NUM_THREADS": share,
        "POLARS_MAX_THREADS": share,
    }


def let_the_first_speak() -> None:
    """What stops a stage by rule, all ranks find alike. One that is not the first gives it time to say so; where the
    first does not come to it, torchrun has not ended this one by then, and its own words are needed.
    """
    time.sleep(SHUTDOWN)
