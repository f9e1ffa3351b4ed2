"""Run a command so that nothing of it is left when it ends, when it takes too long, or when its caller dies.

DVC forwards no signal, torchrun gives each rank a session of its own, and a process that is killed outright cleans up
after nobody. So a command runs under a small process of its own, the supervisor, which does nothing but watch:

    caller ──lifeline──▶ supervisor ──▶ command ──▶ … descendants

The lifeline is a pipe. The caller never writes to it; the kernel closes it when the caller ends, even by SIGKILL. On
that, on SIGTERM, after the timeout and after the command's own end, the supervisor ends every descendant: SIGTERM to
the command, which may wind up its own children in order, SIGTERM to those that are left, SIGKILL; each after a bounded
grace. On Linux it adopts orphans, so that a daemon's double fork does not hide from it, and the command is told to die
if the supervisor itself is killed.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from pipeline.process import adopt_orphans, die_with_parent

TIMED_OUT = 124  # as timeout(1) says it
GRACE = 10.0  # seconds between SIGTERM and SIGKILL: enough for a stage to write its state and leave its checkpoint
POLL = 0.05  # seconds
STOPPED = 128 + signal.SIGTERM
KILL_ATTEMPTS = 20  # of 0.5 s each; only a process stuck in the kernel survives one

_running: set[subprocess.Popen[bytes]] = set()
_stopping = False


def stop_all() -> None:
    """End every command of this process, whichever threads wait for them; later ones end before they begin.

    For the thread that hears the signal while others wait: each `run` returns STOPPED once nothing is left of its own.
    """
    global _stopping
    _stopping = True
    for supervisor in tuple(_running):
        supervisor.terminate()


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout: float | None = None,
    grace: float = GRACE,
) -> int:
    """Run `command` under a supervisor. Returns its exit status; 128 + n for signal n; TIMED_OUT after `timeout` s;
    STOPPED after `stop_all`.

    Whatever ends this call, by return or by an exception, no descendant of the command is left behind.
    """
    with started(command, cwd=cwd, env=env, timeout=timeout, grace=grace) as supervisor:
        return status_of(supervisor.wait())


@contextlib.contextmanager
def started(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout: float | None = None,
    grace: float = GRACE,
    descriptors: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """The supervisor of `command`, which gets the file `descriptors` too. After the block nothing of it is left."""
    arguments = [str(grace), "none" if timeout is None else str(timeout), *command]
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "flows.supervise", *arguments],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.PIPE,
        pass_fds=descriptors,
        start_new_session=True,  # a Ctrl-C at the terminal reaches the caller alone; the tree hears of it from here
    )
    _running.add(supervisor)
    try:
        if _stopping:
            supervisor.terminate()
        yield supervisor
    finally:
        _running.discard(supervisor)
        assert supervisor.stdin is not None
        supervisor.stdin.close()
        supervisor.wait()


@contextlib.contextmanager
def silent_without_parent() -> Iterator[None]:
    """Where the block ends by an exception and the parent is gone, let what is said from then on go nowhere.

    A worker of Prefect's reads what its flow runs print. Without it their first line would break the pipe and end them
    before they have told the server that they have crashed.
    """
    parent = os.getppid()
    try:
        yield
    except BaseException:
        if os.getppid() != parent:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.dup2(nowhere, sys.stderr.fileno())
        raise


def main(arguments: Sequence[str]) -> int:
    """The supervisor: `GRACE TIMEOUT COMMAND…`, its lifeline on standard input."""
    grace, timeout, command = float(arguments[0]), arguments[1], list(arguments[2:])
    deadline = float("inf") if timeout == "none" else time.monotonic() + float(timeout)
    stop_requests: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop_requests.append(number))
    adopt_orphans()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        close_fds=False,  # but for the three of every program there are only those that are meant for it
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    status = TIMED_OUT
    while time.monotonic() < deadline:
        if child.poll() is not None:
            status = status_of(child.returncode)
            break
        if stop_requests or _is_cut(sys.stdin.fileno()):
            status = STOPPED
            break
    _end_all(child, grace)
    return status


def status_of(returncode: int) -> int:
    """A return code of subprocess as a shell would name it."""
    return returncode if returncode >= 0 else 128 - returncode


def _is_cut(lifeline: int) -> bool:
    """Wait a moment for the lifeline's end."""
    readable, _, _ = select.select([lifeline], [], [], POLL)
    return bool(readable) and os.read(lifeline, 1) == b""


def _end_all(command: subprocess.Popen[bytes], grace: float) -> None:
    """End the command, then every descendant that is left."""
    if command.poll() is None:
        command.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(grace)
    end_descendants(grace)


def end_descendants(grace: float) -> None:
    """End every descendant of this process, also those born meanwhile."""
    descendants = psutil.Process().children(recursive=True)
    _signal(descendants, signal.SIGTERM)
    psutil.wait_procs(descendants, timeout=grace)
    for _ in range(KILL_ATTEMPTS):
        descendants = psutil.Process().children(recursive=True)
        if not descendants:
            return
        _signal(descendants, signal.SIGKILL)
        psutil.wait_procs(descendants, timeout=0.5)
    print(f"still there after SIGKILL: {descendants}", file=sys.stderr)


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
