"""Which stages are up to date: DVC's word for each stage, carried on to all that depend on it."""

import json
import subprocess
import sys
from pathlib import Path

from flows.dag import read_dag
from pipeline.errors import InputError


def freshness(root: Path) -> dict[str, bool]:
    """Stage → whether `dvc repro` would leave it as it is, in the DAG's order."""
    dag = read_dag(root)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "status", "--json"]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if answer.returncode != 0:
        raise InputError(f"dvc status: {answer.stderr.strip()}")
    changed = set(json.loads(answer.stdout))
    return {stage: changed.isdisjoint({stage} | dag.needs[stage]) for stage in dag.order}
