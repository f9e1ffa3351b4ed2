"""Starts a test's program on several ranks, once for all the cases that it runs there.

They are forks of one process that has imported everything, which torchrun's would each do again. torchrun itself is
what tests/faults/test_ranks.py starts them by.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import start_processes

from pipeline.process import die_with_parent, end_rank, importing
from pipeline.training.distributed import imported_deepspeed

ROOT = Path(__file__).parents[1]
SECONDS = 500
MARK = "TORCHELASTIC_RUN_ID"  # what tells torchrun's processes


def start(module: str, ranks: int, folder: Path, *cases: str) -> dict[str, Any]:
    """Call MODULE's `main(FOLDER, CASE…)` on so many ranks. Returns the results that the first one writes."""
    command = [sys.executable, "-m", "tests.ranks", module, str(ranks), str(folder), *cases]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "R1FLOW_RANK_TIMEOUT": "120"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-5000:]
    results: dict[str, Any] = json.loads((folder / f"results-{ranks}.json").read_text())
    return results


def fork(module: str, ranks: str, *arguments: str) -> None:
    """Be the process that the ranks come out of. Raises what the first one raises that does not end well."""
    with importing():
        program = importlib.import_module(module)
        imported_deepspeed(torch.device("cpu"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": ranks, MARK: "forked"}
    start_processes(_rank, (program, arguments), int(ranks), start_method="fork")


def _rank(number: int, program: Any, arguments: tuple[str, ...]) -> None:
    die_with_parent()
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
    program.main(*arguments)
    end_rank(0)


if __name__ == "__main__":
    fork(*sys.argv[1:])
