"""What can be read of the machine: the device that computes, peak memory, energy.

Nothing is imported for it: torch is asked only where the process has loaded it. What cannot be read is left out; it is
never said to be 0.
"""

import contextlib
import ctypes
import platform
import resource
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")  # docs.kernel.org/power/powercap


@dataclass(frozen=True)
class Device:
    """What a process computes on."""

    name: str
    kind: str  # "cpu" or "cuda"
    count: int


def device() -> Device:
    """The GPUs that this process has put something on, and otherwise the CPU, as one device."""
    torch, used = _cuda()
    if not used:
        return Device(_cpu_name(), "cpu", 1)
    return Device(torch.cuda.get_device_name(used[0]), "cuda", len(used))


def peak_memory() -> int:
    """The most bytes that this process has held in memory."""
    with contextlib.suppress(OSError):  # rusage would count what the process was before its exec, too
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_device_memory() -> int | None:
    """The most bytes that torch has held on this process's GPUs together; None without one."""
    torch, used = _cuda()
    return sum(torch.cuda.max_memory_reserved(index) for index in used) if used else None


class Energy:
    """Joules since its making, by source: the CPU packages of the whole machine and the GPUs of this process."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._last = {zone: energy for zone in self._packages if (energy := _microjoules(zone)) is not None}
        self._joules: dict[str, float] = {"cpu": 0.0} if self._last and len(self._last) == len(self._packages) else {}
        self._gpus = _nvml_joules()  # at first sight of them, later

    @property
    def joules(self) -> dict[str, float]:
        """Source → joules. Empty where nothing can be read."""
        return dict(self._joules)

    def sample(self) -> None:
        """Look at the counters. A package's starts over every few minutes, so look more often than that."""
        if "cpu" in self._joules:
            for zone, before in self._last.items():
                now = _microjoules(zone)
                if now is None:
                    del self._joules["cpu"]
                    break
                span = int((zone / "max_energy_range_uj").read_text()) if now < before else 0
                self._joules["cpu"] += (now + span - before) / 1e6
                self._last[zone] = now
        gpus = _nvml_joules()
        if gpus is not None:
            if self._gpus is None:
                self._gpus = gpus
            self._joules["gpu"] = gpus - self._gpus


def _microjoules(zone: Path) -> int | None:
    """A package's counter; newer kernels let root alone read it."""
    try:
        return int((zone / "energy_uj").read_text())
    except OSError:
        return None


def _cuda() -> tuple[Any, list[int]]:
    """torch, where it is loaded, and the GPUs that it holds memory on."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return torch, []
    return torch, [index for index in range(torch.cuda.device_count()) if torch.cuda.max_memory_reserved(index)]


@cache
def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _nvml() -> ctypes.CDLL | None:
    """The driver's management library, ready; None where there is no driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def _nvml_joules() -> float | None:
    """What this process's GPUs have used since their driver was loaded; None where one does not say."""
    torch, used = _cuda()
    if not used or (library := _nvml()) is None:
        return None
    total = 0.0
    for index in used:
        handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}".encode()
        if library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) != 0:
            return None
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
            return None
        total += millijoules.value / 1000
    return total
