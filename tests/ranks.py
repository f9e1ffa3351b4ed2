"""Starts a test's program on several ranks by torchrun, and once for all the cases that it runs there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 500


def start(module: str, ranks: int, folder: Path, *cases: str) -> dict[str, Any]:
    """Run `python -m MODULE FOLDER CASE…` on so many ranks. Returns the results that the first one writes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", "0"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command = [*torchrun, *meeting, "-m", module, str(folder), *cases]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "R1FLOW_RANK_TIMEOUT": "120"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-5000:]
    results: dict[str, Any] = json.loads((folder / f"results-{ranks}.json").read_text())
    return results
