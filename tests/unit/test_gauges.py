"""What is read of the machine, and what is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.gauges import Energy, device, peak_device_memory, peak_memory


def zone(folder: Path, name: str, microjoules: int, span: int = 1_000_000) -> Path:
    made = folder / name
    made.mkdir(parents=True, exist_ok=True)
    (made / "energy_uj").write_text(f"{microjoules}\n")
    (made / "max_energy_range_uj").write_text(f"{span}\n")
    return made


def test_energy_is_the_packages_sum_and_counters_start_over(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 900_000), zone(tmp_path, "intel-rapl:1", 0)
    core = zone(tmp_path, "intel-rapl:0:0", 0)  # part of the first: not to be counted twice
    energy = Energy(tmp_path)
    (first / "energy_uj").write_text("100000\n")
    (second / "energy_uj").write_text("300000\n")
    (core / "energy_uj").write_text("77777\n")
    energy.sample()
    assert energy.joules == {"cpu": pytest.approx(0.2 + 0.3)}


def test_what_cannot_be_read_is_not_zero(tmp_path: Path) -> None:
    assert Energy(tmp_path / "nothing").joules == {}
    hidden = zone(tmp_path, "intel-rapl:0", 5)
    (hidden / "energy_uj").unlink()
    energy = Energy(tmp_path)
    energy.sample()
    assert energy.joules == {}


def test_a_counter_that_goes_away_takes_its_figure_along(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", 5)
    energy = Energy(tmp_path)
    assert energy.joules == {"cpu": 0.0}
    (package / "energy_uj").unlink()
    energy.sample()
    assert energy.joules == {}


def test_peak_memory_is_this_process_own() -> None:
    held = bytearray(200_000_000)
    assert peak_memory() > len(held)
    program = "from pipeline.gauges import peak_memory; print(peak_memory())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert 1_000_000 < int(child.stdout) < 150_000_000  # not what its parent held


def test_without_a_gpu_the_cpu_is_one_device() -> None:
    assert (device().kind, device().count, peak_device_memory()) == ("cpu", 1, None)
