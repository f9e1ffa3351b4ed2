"""prefect.yaml names flows that are there, and deploying them loads nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.job import read_yaml

ROOT = Path(__file__).parents[2]
DEPLOYMENTS: list[dict[str, Any]] = read_yaml(ROOT / "prefect.yaml")["deployments"]
HEAVY = {"torch", "mlflow", "great_expectations", "deepspeed", "transformers"}
PROGRAM = """
import importlib, json, sys
flows = {}
for place in sys.argv[1:]:
    file, name = place.split(":")
    flows[place] = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name).name
print(json.dumps([flows, list(sys.modules)]))
"""


def test_entry_points_are_the_deployments_flows_and_light() -> None:
    places = {one["entrypoint"] for one in DEPLOYMENTS}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *places], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    flows, loaded = json.loads(done.stdout)
    assert HEAVY.isdisjoint(loaded)
    # A deployment is called as its flow is; a stage has one for each pool.
    named = {one["name"]: flows[one["entrypoint"]] for one in DEPLOYMENTS}
    pools = {one["name"]: one["work_pool"]["name"] for one in DEPLOYMENTS}
    assert all(flow == name or (flow == "stage" and pools[name] == name) for name, flow in named.items())
