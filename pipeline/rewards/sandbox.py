"""Run a Python program that nobody trusts: bubblewrap around it, its output the only thing that comes out.

The program sees the standard library of this Python, read-only, an empty /tmp of bounded size, and nothing else of the
machine: no network, no /proc, no environment, a user and process numbers of its own. What it was started with is its
source and its standard input; whoever judges it does so outside, from its output. When it ends, or its time is up, all
that it has started ends with it. Two things differ from the usual wrapper:

- A superuser's limits on processes are not kept by the kernel. So where we run as root, a first bubblewrap shows the
  interpreter, which may lie in root's own folder, to the user `nobody`, and the sandbox proper is that user's.
- bubblewrap itself says that the program ran and how it ended, on a channel that the program does not have. Without
  that word a run is a failure of the sandbox, never a verdict.
"""

import fcntl
import json
import os
import selectors
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.rewards.seccomp import seccomp_filter

MIB = 2**20
NOBODY = "65534"
GRACE_SECONDS = 10.0
"""How long the kernel may take to end a sandbox; far more than it needs."""

_ERRORS_KEPT = 2_000  # bytes of the standard error, for the reason
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
_DEVICES = ("/dev/null", "/dev/urandom")
_SHOWN = "/tmp/python"  # where root shows the interpreter to nobody


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. Memory is bounded for each process, so for all of them by `memory_bytes` × `processes`."""

    cpu_seconds: int = 4  # of each process
    wall_seconds: float = 12.0
    memory_bytes: int = 512 * MIB  # address space
    processes: int = 4  # at a time; threads count as well
    disk_bytes: int = 16 * MIB  # of /tmp
    file_bytes: int = 4 * MIB
    open_files: int = 32
    output_bytes: int = MIB


@dataclass(frozen=True, slots=True)
class Run:
    """How a program ended: by itself, killed when its time was up, or killed when it had written too much."""

    output: bytes  # standard output, at most `output_bytes`
    errors: bytes  # the beginning of the standard error
    status: int  # exit status, 128 + n where signal n ended it; meaningful only where it ended by itself
    ended: Literal["by itself", "time", "output"]
    seconds: float  # of wall time


class SandboxError(RuntimeError):
    """bubblewrap could not run a program. The message is what it said."""


_slots = threading.BoundedSemaphore(os.cpu_count() or 1)
"""Not more sandboxes at a time than cores, whoever asks: a program that waits for a core loses its wall time."""


def interpreter() -> Path:
    return Path(sys.base_prefix).resolve() / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"


def run(program: str, stdin: str, limits: Limits | None = None) -> Run:
    """Run a program on an input. Raises SandboxError where the sandbox, not the program, fails."""
    limits = limits or Limits()
    with _slots:
        files = [_sealed("program", program.encode(errors="replace")), _sealed("filter", seccomp_filter())]
        files.append(_sealed("stdin", stdin.encode(errors="replace")))
        told, tell = os.pipe()
        try:
            process = subprocess.Popen(
                command(limits, program=files[0], filter_=files[1], status=tell),
                stdin=files[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(*files[:2], tell),
                cwd="/",
                env={},
            )
        finally:
            for descriptor in (*files, tell):
                os.close(descriptor)
        started = time.monotonic()
        with process, os.fdopen(told, "rb") as status:
            ended, output, errors = _follow(process, limits)
            seconds = time.monotonic() - started
            return Run(output, errors, _exit_status(status.read(), ended, errors), ended, seconds)


def command(limits: Limits, *, program: int, filter_: int, status: int) -> list[str]:
    """The whole command line; the numbers are open files. Its parts are the guarantees, one a line."""
    bwrap, prlimit = _tool("bwrap"), _tool("prlimit")
    prefix = str(interpreter().parents[1])
    entered, shown = _as_nobody(bwrap, prefix) if os.geteuid() == 0 else ([], prefix)
    python = f"bin/{interpreter().name}"
    return [
        *entered,
        bwrap,
        *("--unshare-user", "--uid", NOBODY, "--gid", NOBODY),
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session"),
        *("--json-status-fd", str(status)),
        *("--seccomp", str(filter_)),
        "--clearenv",
        *("--setenv", "LANG", "C.UTF-8", "--setenv", "HOME", "/tmp", "--setenv", "PYTHONHASHSEED", "0"),
        *(argument for path in _LIBRARIES for argument in ("--ro-bind-try", path, path)),
        *("--ro-bind", prlimit, prlimit),
        *("--ro-bind", f"{shown}/lib", f"{prefix}/lib"),
        *("--ro-bind", f"{shown}/{python}", f"{prefix}/{python}"),
        *(argument for path in _DEVICES for argument in ("--dev-bind", path, path)),
        *("--ro-bind-data", str(program), "/program.py"),
        *("--size", str(limits.disk_bytes), "--tmpfs", "/tmp"),
        *("--remount-ro", "/"),
        *("--chdir", "/tmp"),
        "--",
        prlimit,  # inside, where the processes of the sandbox alone count
        f"--cpu={limits.cpu_seconds}",
        f"--as={limits.memory_bytes}",
        f"--nproc={limits.processes + 1}",  # bubblewrap's own is there as well
        f"--fsize={limits.file_bytes}",
        f"--nofile={limits.open_files}",
        "--core=1",  # not even a handler of core dumps is called, as it would be for 0
        "--",
        *(f"{prefix}/{python}", "-s", "-S", "-P", "-B", "-X", "utf8", "/program.py"),
    ]


def _as_nobody(bwrap: str, prefix: str) -> tuple[list[str], str]:
    """The beginning of the command where we are root, and where the interpreter is found from there."""
    entered = [
        bwrap,
        *("--dev-bind", "/", "/", "--tmpfs", "/tmp", "--ro-bind", prefix, _SHOWN),
        *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"),
        *("--unshare-pid", "--die-with-parent", "--"),  # so that the kernel ends with it what is not root's any more
        *(_tool("setpriv"), "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"),
    ]
    return entered, _SHOWN


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SandboxError(f"{name}: not found")
    return str(Path(path).resolve())


def _sealed(name: str, content: bytes) -> int:
    """An open file in memory that nobody can write to any more, read from its beginning."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return descriptor


def _follow(process: subprocess.Popen[bytes], limits: Limits) -> tuple[Any, bytes, bytes]:
    """Read until both outputs are closed, which they are once nothing in the sandbox is alive, or kill it."""
    assert process.stdout is not None
    assert process.stderr is not None
    ended, deadline = "by itself", time.monotonic() + limits.wall_seconds
    output, errors = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, (output, limits.output_bytes))
        selector.register(process.stderr, selectors.EVENT_READ, (errors, _ERRORS_KEPT))
        while selector.get_map():
            remaining = deadline - time.monotonic()
            if ended == "by itself" and (remaining <= 0 or len(output) > limits.output_bytes):
                ended = "time" if remaining <= 0 else "output"
                process.kill()
                deadline = time.monotonic() + GRACE_SECONDS
            elif remaining <= 0:
                raise SandboxError(f"the program outlived its sandbox by {GRACE_SECONDS:.0f} s")
            for key, _ in selector.select(max(remaining, 0.0)):
                data = os.read(key.fd, 65_536)
                kept, most = key.data
                kept += data[: most + 1 - len(kept)]
                if not data:
                    selector.unregister(key.fileobj)
    return ended, bytes(output[: limits.output_bytes]), bytes(errors[:_ERRORS_KEPT])


def _exit_status(status: bytes, ended: str, errors: bytes) -> int:
    """The exit status as bubblewrap reports it, -1 where we have killed it before it could."""
    reports = [json.loads(line) for line in status.splitlines()]
    codes = [report["exit-code"] for report in reports if "exit-code" in report]
    if not codes and ended == "by itself":
        raise SandboxError(errors.decode(errors="replace").strip() or "bubblewrap died without a word")
    return codes[0] if codes else -1
