"""DVC's commands that move data, supervised, with a time limit, and tried again where the network may be to blame.

Most of a short `dvc pull` is the import of DVC and of its client for S3. So one process does all of a stage's, and
imports while the stage is prepared: `python -m flows.transfer SOCKET ROOT`. It gets the arguments of one command after
the other, a line of JSON each, and answers with its exit status.
"""

import json
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import Popen

from flows.attempts import StageFailedError
from flows.local import environment
from flows.supervise import STOPPED, TIMED_OUT, started, status_of
from pipeline.errors import EXIT_BUG

TRIES = 3
DELAY = 5.0  # seconds before the second try, twice that before the third


class Mover:
    """Runs `dvc` in the project at `root`, whose default remote is set."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._running = ExitStack()
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Mover":
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def transfer(self, stage: str, timeout: float, *arguments: str) -> None:
        """Run `dvc ARGUMENTS` for a stage, each try in at most `timeout` seconds. Raises StageFailedError."""
        status = 0
        for tried in range(TRIES):
            if tried:
                time.sleep(DELAY * 2 ** (tried - 1))
            status = self._run(arguments, timeout)
            if status in (0, STOPPED):
                break
        if status != 0:
            why = f"not done after {timeout:.0f} s" if status == TIMED_OUT else f"ended with {status}"
            exit_code = STOPPED if status == STOPPED else EXIT_BUG
            raise StageFailedError(stage, exit_code, f"dvc {arguments[0]}: {why}", 0.0)

    def _run(self, arguments: Sequence[str], timeout: float) -> int:
        """One try: DVC's exit status, or how its process ended, which the next one replaces."""
        connection = self._socket or self._start()
        connection.settimeout(timeout)
        try:
            connection.sendall(json.dumps(["--wait-for-lock", *arguments]).encode() + b"\n")
            answer = connection.recv(16)
        except TimeoutError:
            self._end()
            return TIMED_OUT
        except ConnectionError:
            answer = b""
        if answer:
            return int(answer)
        status = status_of(self._supervisor.wait())
        self._end()
        return status or EXIT_BUG

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "flows.transfer", str(theirs.fileno()), str(self._root)]
            self._supervisor: Popen[bytes] = self._running.enter_context(
                started(command, cwd=self._root, env=environment(self._root), descriptors=[theirs.fileno()])
            )
        self._socket = self._running.enter_context(ours)
        return ours

    def _end(self) -> None:
        self._running.close()
        self._socket = None


def main(arguments: Sequence[str]) -> int:
    from dvc.cli import main as dvc
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with socket.socket(fileno=int(arguments[0])) as connection, connection.makefile() as commands:
        with suppress(DvcException), Repo(arguments[1]) as repo:  # the command itself will say what is wrong
            _ = repo.cloud.get_remote().fs  # its import takes longest
        for command in commands:
            status = dvc(json.loads(command))
            sys.stdout.flush()
            connection.sendall(str(status).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
