"""What a run needs of this machine and of the services around it, looked at before it is missed."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from pipeline.errors import InputError
from pipeline.job import PARAMS_FILE
from pipeline.params import Params, load_params
from pipeline.rewards.containment import require_sandbox
from pipeline.store import Limits, artifact_store
from pipeline.store.probe import require_conditions
from pipeline.tracking import require_store, store_file

GIB = 2**30
SERVICE_SECONDS = 15.0
LOCAL_SECONDS = 60.0  # for what asks nobody, on a busy machine
SHOWN = ("torch", "transformers", "dvc", "prefect", "mlflow", "great-expectations", "polars")


@dataclass(frozen=True)
class Check:
    """One thing looked at. Where it is not `ok`, a run would fail."""

    name: str
    ok: bool
    detail: str


def examine(root: Path) -> Iterator[Check]:
    """Look at everything, one after the other; no service is waited for longer than SERVICE_SECONDS."""
    yield Check("python", sys.version_info >= (3, 11), platform.python_version())
    yield from _packages()
    yield Check("git", shutil.which("git") is not None, shutil.which("git") or "not found")
    yield from _machine(root)
    yield from _torch()
    yield _sandbox()
    for folder in (root, root / "artifacts", root / "runs", root / ".dvc"):
        yield _writable(folder)
    try:
        params = load_params(root / PARAMS_FILE)
    except InputError as error:
        yield Check("params", False, str(error))
        return
    yield Check("params", True, f"{PARAMS_FILE} keeps all rules")
    yield _tracking(params, root)
    yield _prefect()
    yield _dvc_remote(root)
    yield _store(params, root)


def _packages() -> Iterator[Check]:
    """Every direct dependency in the version that pyproject.toml asks for."""
    wrong = []
    for line in importlib.metadata.requires("r1flow") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in SHOWN if not wrong)
    yield Check("packages", not wrong, ", ".join(wrong) or shown)


def _machine(root: Path) -> Iterator[Check]:
    memory = psutil.virtual_memory()
    yield Check("memory", True, f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free")
    yield Check("disk", True, f"{shutil.disk_usage(root).free / GIB:.1f} GiB free")


def _torch() -> Iterator[Check]:
    """What torch has to compute with."""
    try:
        import torch
    except ImportError as error:
        yield Check("torch", False, str(error))
        return
    yield Check("cores", True, f"{os.cpu_count()}, torch uses {torch.get_num_threads()}")
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = [f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in devices]
    yield Check("gpu", True, ", ".join(names) or "none: everything runs on the cores")
    yield _kernels()


def _kernels() -> Check:
    """No fault where they are missing: models run without them, up to twice as slow."""
    from pipeline.model.native import CannotBuildError, build, load

    try:
        load()
        return Check("cpu kernels", True, f"compiled: {build().name}")
    except CannotBuildError as error:
        return Check("cpu kernels", True, f"none, models run up to twice as slow on the cores: {error}")


def _sandbox() -> Check:
    """No fault where it is missing: only problems with verifier `code` need it, and they refuse to run without."""
    try:
        require_sandbox()
    except InputError as error:
        return Check("sandbox", True, f"none: {error}")
    return Check("sandbox", True, "programs are contained")


def _writable(folder: Path) -> Check:
    try:
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return Check("writable", False, f"{folder}: {error.strerror}")
    return Check("writable", True, str(folder))


def _tracking(params: Params, root: Path) -> Check:
    """Ask MLflow itself, since it alone knows the credentials and what it can read."""
    place = params.tracking.uri or "SQLite in runs/mlflow"
    if params.tracking.uri is None and not store_file(root).is_file():
        return Check("tracking", True, f"{place}: made by the first run")
    try:
        require_store(params.tracking, root, SERVICE_SECONDS)
    except (InputError, ConnectionError) as error:
        return Check("tracking", False, str(error))
    return Check("tracking", True, place)


def _prefect() -> Check:
    uri = os.environ.get("PREFECT_API_URL")
    if uri is None:
        return Check("prefect", True, "no server: each run brings its own")
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVICE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return Check("prefect", error.code in (401, 403), f"{uri}: {error}")  # it answers, and wants to know who asks
    except (OSError, ValueError) as error:
        return Check("prefect", False, f"PREFECT_API_URL={uri}: {error}")
    return Check("prefect", True, uri)


def _dvc_remote(root: Path) -> Check:
    """Ask DVC itself, since it alone knows the remote's address and credentials."""
    try:
        name = _dvc(root, LOCAL_SECONDS, "config", "core.remote").stdout.strip()
        if not name:
            return Check("dvc remote", True, "none: data versions stay on this machine")
        answer = _dvc(root, SERVICE_SECONDS, "ls-url", f"remote://{name}/")
    except subprocess.TimeoutExpired as late:
        return Check("dvc remote", False, f"no answer within {late.timeout:.0f} s: dvc {' '.join(late.cmd[3:])}")
    empty = "does not exist" in answer.stderr  # how DVC says that nothing was pushed yet
    error = answer.stderr.strip().partition("\n")[0]
    return Check("dvc remote", answer.returncode == 0 or empty, f"{name}: {error or 'answers'}")


def _store(params: Params, root: Path) -> Check:
    place = params.machine.store
    if place is None:
        return Check("artifact store", True, "none: checkpoints and releases stay on this machine")
    try:
        require_conditions(artifact_store(place, root, Limits(connect_seconds=2.0, read_seconds=5.0, attempts=2)))
    except (InputError, ConnectionError) as error:
        return Check("artifact store", False, str(error))
    return Check("artifact store", True, f"{place}: can be written and keeps conditions")


def _dvc(root: Path, seconds: float, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=seconds)
