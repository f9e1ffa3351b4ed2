"""A machine is lost in the middle of a stage: another one goes on from the store and comes to the same bits."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
STORE = "s3://lost/machines"
STEPS = 200  # some seconds more than it takes to see the first checkpoint
YAML_FILE = YAML(typ="safe", pure=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="lost")
    yield
    moto.stop()


def machine(folder: Path, store: str | None) -> Path:
    """A machine's copy of the project, compiled kernels included; byte code is being written by other tests."""
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("*.pyc*", ".*"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    params = YAML_FILE.load((ROOT / "infra" / "profiles" / "smoke.yaml").read_text())
    params["base"]["train"] |= {"steps": STEPS, "checkpoint_every": 10}
    params["base"]["corpus"]["documents"] = 1000
    params["machine"] = {"threads": 1, "store": store}
    with (folder / "params.yaml").open("w") as file:
        YAML_FILE.dump(params, file)
    return folder


def start(folder: Path, stage: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", stage],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, stage: str) -> str:
    """What the stage says."""
    process = start(folder, stage)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


def copies() -> int:
    """How often the pointer of the work has moved."""
    objects = boto3.client("s3").list_objects_v2(Bucket="lost", Prefix="machines/checkpoints/base/")
    keys = [entry["Key"] for entry in objects.get("Contents", []) if entry["Key"].endswith("/pointers/newest")]
    return json.loads(boto3.client("s3").get_object(Bucket="lost", Key=keys[0])["Body"].read())["moves"] if keys else 0


def test_a_lost_machine_s_work_goes_on_in_the_same_bits(server: None, tmp_path: Path) -> None:
    names = {"undisturbed": None, "lost": STORE, "other": STORE}
    undisturbed, lost, other = (machine(tmp_path / name, store) for name, store in names.items())
    run(undisturbed, "curation")
    for folder in (lost, other):
        shutil.copytree(undisturbed / "artifacts", folder / "artifacts")

    process = start(lost, "base")
    deadline = time.monotonic() + 200
    while copies() == 0:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    shutil.rmtree(lost)

    run(undisturbed, "base")
    said = re.search(r"base: goes on from the checkpoint that \S+ has: (\d+)", run(other, "base"))
    assert said is not None
    assert 0 < int(said[1]) < STEPS
    for name in ("model/model.safetensors", "curves.csv", "metrics.json"):
        expected = (undisturbed / "artifacts" / "base" / name).read_bytes()
        assert (other / "artifacts" / "base" / name).read_bytes() == expected, name
    costs = [json.loads((one / "runs/base/state.json").read_text())["cost"] for one in (undisturbed, other)]
    assert costs[0]["trained_tokens"] == costs[1]["trained_tokens"]
    assert costs[0]["flops"] == costs[1]["flops"]
    assert costs[1]["attempts"] == 2
