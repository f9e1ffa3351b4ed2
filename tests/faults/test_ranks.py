"""Whatever happens to one of a stage's two ranks, or to torchrun: all end, and the next run goes on."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.job import identity
from pipeline.state import read_state
from tests.processes import unless_gone
from tests.project import PARAMS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BASE = """\
base:
  kind: pretrain
  model: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
          num_key_value_heads: 1, max_position_embeddings: 256, tie_word_embeddings: true}
  corpus: {documents: 200, worked: 0.5, families: {sum: 1.0}}
  train: {steps: %d, tokens_per_step: 800, learning_rate: 1e-2, checkpoint_every: 5}
"""
DAG = """\
stages:
  base:
    cmd: python -m pipeline base
    params: [seed, held_out, distributed, base]
    outs: [artifacts/base/model, artifacts/base/curves.csv]
    metrics: [artifacts/base/metrics.json]
"""
STEPS = 60
SILENCE = 30.0  # seconds that a rank waits for another one
BOUND = SILENCE + 60.0
PATIENT, IMPATIENT = "machine: {retries: 1}\n", f"machine: {{rank_timeout_minutes: {SILENCE / 60}}}\n"


def project(root: Path, distributed: str) -> Path:
    start, end = PARAMS.index("base:"), PARAMS.index("cold_start:")
    students = PARAMS[PARAMS.index("distillation:") :].replace("*checkpoint", CHECKPOINT)
    middle = PARAMS[end : PARAMS.index("distillation:")]
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS[:start] + BASE % STEPS + middle + students + distributed)
    (root / "dvc.yaml").write_text(DAG)
    return root


def exchange(root: Path, old: str, new: str) -> None:
    params = root / "params.yaml"
    assert old in params.read_text()
    params.write_text(params.read_text().replace(old, new))


CHECKPOINT = '{kind: checkpoint, source: model, digest: "%s"}' % ("0" * 64)


def stage(root: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-m", "pipeline", "base"], cwd=root, env=environment)


def curves(root: Path) -> list[dict[str, float]]:
    with (root / "artifacts" / "base" / "curves.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def in_the_middle(root: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process], psutil.Process]:
    """A run that has written a checkpoint of its own, all processes below it, and its second rank."""
    before = saved(root)
    run = stage(root)
    deadline = time.monotonic() + 240
    while saved(root) <= before:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes = psutil.Process(run.pid).children(recursive=True)
    [second] = [process for process in processes if unless_gone(process.environ, {}).get("RANK") == "1"]
    return run, processes, second


def saved(root: Path) -> int:
    steps = (root / "runs" / "base").glob("*/step-*")
    return max((int(folder.name.removeprefix("step-")) for folder in steps), default=0)


def assert_ends(run: subprocess.Popen[bytes], processes: list[psutil.Process], status: int) -> None:
    assert run.wait(timeout=BOUND) == status
    assert psutil.wait_procs(processes, timeout=BOUND)[1] == []


def test_whatever_happens_to_a_rank_all_end_and_the_next_run_goes_on(tmp_path: Path) -> None:
    root = project(tmp_path / "two", "distributed: {ranks: 2, zero: 2}\n")

    run, processes, second = in_the_middle(root)
    second.kill()
    assert_ends(run, processes, 1)
    state = read_state(root, "base")
    assert state is not None
    assert (state.state, state.exit_code) == ("failed", 1)
    assert "rank 1 was ended by signal 9" in state.error

    exchange(root, PATIENT, IMPATIENT)
    run, processes, second = in_the_middle(root)
    second.send_signal(signal.SIGSTOP)
    assert_ends(run, processes, 1)
    exchange(root, IMPATIENT, PATIENT)  # on a busy machine one rank may start that much later than the other

    run, processes, _ = in_the_middle(root)
    run.kill()
    assert_ends(run, processes, -signal.SIGKILL)

    kept = saved(root)
    assert 0 < kept < STEPS
    assert stage(root).wait(timeout=240) == 0
    one = project(tmp_path / "one", "")
    assert stage(one).wait(timeout=240) == 0
    for figures, others in zip(curves(root), curves(one), strict=True):
        assert all(math.isclose(figures[name], value, rel_tol=1e-4, abs_tol=1e-6) for name, value in others.items())
    assert not list((root / "runs" / "base" / identity(root, "base").key).glob("*.bin"))
