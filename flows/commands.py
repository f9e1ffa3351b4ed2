"""DVC's commands for one stage, one after the other in one process.

Most of a short `dvc` is the import of DVC and of its client for S3. So a stage on a worker (flows/stage.py) has one
process for all of its commands, which imports while the folder is prepared: `python -m flows.commands SOCKET ROOT`. It
gets one command after the other, a line of JSON each, and answers with its exit status once nothing of it is left.
"""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import Popen

from flows.local import environment
from flows.supervise import GRACE, TIMED_OUT, end_descendants, started, status_of
from pipeline.errors import EXIT_BUG
from pipeline.process import adopt_orphans


class Commands:
    """`dvc` in the project at `root`, whose default remote is set, under a supervisor until the end of the block."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._running = ExitStack()
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Commands":
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def run(self, arguments: Sequence[str], timeout: float, variables: Mapping[str, str] | None = None) -> int:
        """The exit status of `dvc ARGUMENTS`, with these environment variables from now on.

        TIMED_OUT after `timeout` seconds, and where the process itself ends how it did; the next command has a new one.
        """
        connection = self._socket or self._start()
        connection.settimeout(timeout)
        try:
            connection.sendall(json.dumps([["--wait-for-lock", *arguments], dict(variables or {})]).encode() + b"\n")
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
            command = [sys.executable, "-m", "flows.commands", str(theirs.fileno()), str(self._root)]
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

    adopt_orphans()
    with socket.socket(fileno=int(arguments[0])) as connection, connection.makefile() as commands:
        with suppress(DvcException), Repo(arguments[1]) as repo:  # the command itself will say what is wrong
            _ = repo.cloud.get_remote().fs  # its import takes longest
        for line in commands:
            command, variables = json.loads(line)
            os.environ.update(variables)
            status = dvc(command)
            end_descendants(GRACE)
            sys.stdout.flush()
            connection.sendall(str(status).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
