"""Whether the sandbox holds on this machine, tried before anything of a model runs in it.

A program of ours (pipeline.rewards.probe) tries to get at what was laid out for it: a secret in a file, our
environment, folders to write to, listening sockets, more memory, disk and threads than its share, a process that stays
behind. That it could not is never concluded from silence: its report must name every attempt, and what can be looked at
from outside is.
"""

import json
import platform
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pipeline.errors import InputError
from pipeline.rewards import sandbox
from pipeline.rewards.sandbox import Limits, Run, SandboxError
from pipeline.rewards.seccomp import MACHINES

LIMITS = Limits(wall_seconds=20.0, disk_bytes=4 * sandbox.MIB, file_bytes=sandbox.MIB)
LEFT_BEHIND = "leave a process behind"  # the one attempt that succeeds inside; it fails where the process ends with it
PLANTED_IN = "/var/tmp"  # not /tmp, of which the sandbox has one of its own
ENVIRONMENT = ("LANG", "HOME", "PYTHONHASHSEED", "PWD")  # all that there may be

_NAMESPACES = {  # file: the value with which nobody but root may make a user namespace
    "/proc/sys/user/max_user_namespaces": "0",
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}


@cache
def require_sandbox() -> None:
    """Prove, once per process, that programs are contained here. Raises InputError that says what is missing."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise InputError(
            f"verifier code: the sandbox needs Linux on {' or '.join(MACHINES)}, not {platform.platform()}"
        )
    for tool, package in (("bwrap", "bubblewrap"), ("prlimit", "util-linux"), ("setpriv", "util-linux")):
        if shutil.which(tool) is None:
            raise InputError(
                f"verifier code: {tool} is not installed, and without it no program of a model runs here; install the "
                f"package {package} (`apt-get install {package}`)"
            )
    if not sandbox.interpreter().exists():
        raise InputError(f"verifier code: {sandbox.interpreter()}: no such interpreter to run programs with")
    try:
        escapes = probe()
    except SandboxError as error:
        raise InputError(f"verifier code: bubblewrap cannot make a sandbox here: {error}; {_advice()}") from error
    if escapes:
        raise InputError(f"verifier code: the sandbox does not hold here: a program could {', '.join(escapes)}")


def probe() -> list[str]:
    """Run the probe. Returns what it could do and ought not to; empty where the sandbox holds."""
    with (
        tempfile.TemporaryDirectory(dir=PLANTED_IN) as name,
        socket.create_server(("127.0.0.1", 0)) as internet,
        socket.socket(socket.AF_UNIX) as local,
    ):
        folder = Path(name)
        folder.chmod(0o777)  # what keeps the probe out must be the sandbox
        secret = secrets.token_hex()
        (folder / "secret").write_text(secret)
        (folder / "secret").chmod(0o666)
        local.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        local.listen()
        told = {
            "folder": name,
            "secret": secret,
            "environment": ENVIRONMENT,
            "port": internet.getsockname()[1],
            "disk_bytes": LIMITS.disk_bytes,
            "memory_bytes": LIMITS.memory_bytes,
            "processes": LIMITS.processes,
        }
        program = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
        outcome = sandbox.run(program, json.dumps(told), LIMITS)
        return _escapes(outcome, sorted(entry.name for entry in folder.iterdir()))


def _escapes(outcome: Run, found: list[str]) -> list[str]:
    if outcome.ended != "by itself" or outcome.status != 0:
        said = outcome.errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise SandboxError(f"the self-test did not run to its end ({outcome.ended}, status {outcome.status}): {said}")
    done: Mapping[str, bool] = json.loads(outcome.output)
    assert done.get(LEFT_BEHIND), "the probe must be able to start processes, or it proves nothing"
    escapes = [name for name, success in done.items() if success and name != LEFT_BEHIND]
    if found != ["secret", "socket"]:
        escapes.append(f"leave {found} outside")
    return escapes


def _advice() -> str:
    """What to do, as far as the kernel's settings tell."""
    for name, closed in _NAMESPACES.items():
        path = Path(name)
        if path.exists() and path.read_text().strip() == closed:
            return f"user namespaces are switched off by {name} = {closed}: an administrator can change it with sysctl"
    return (
        "it needs user namespaces. In a container they must be allowed: with Docker, --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined --security-opt systempaths=unconfined"
    )
