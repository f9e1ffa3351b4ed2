"""DVC's commands, one after the other in one process.

Most of a short `dvc` is the import of DVC and, for what travels, of its client for S3. So a stage on a worker
(flows/stage.py) has one process for all of its commands, which imports while the folder is prepared, and the recipe
that runs here (flows/recipe.py) has as many as stages run at a time: `python -m flows.commands SOCKET ROOT WHERE`. Each
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
from threading import Lock

from flows.local import environment
from flows.supervise import GRACE, TIMED_OUT, end_descendants, started, status_of, stop_all
from pipeline.errors import EXIT_BUG
from pipeline.process import adopt_orphans, importing

HERE, REMOTE = "here", "remote"


class Commands:
    """`dvc` in the project at `root` under a supervisor, until the end of the block.

    `remote`: data will travel to and from the default remote, so that its client is imported, too.
    """

    def __init__(self, root: Path, *, remote: bool) -> None:
        self._root, self._where = root, REMOTE if remote else HERE
        self._running, self._ending = ExitStack(), Lock()
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Commands":
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    @property
    def supervisor(self) -> int:
        """The process that is there until nothing is left of a command."""
        return self._supervisor.pid

    def run(self, arguments: Sequence[str], timeout: float, variables: Mapping[str, str] | None = None) -> int:
        """The exit status of `dvc ARGUMENTS`, which sees these environment variables as well.

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
        except OSError:  # it ends, or whoever ends the block has closed this side
            answer = b""
        if answer:
            return int(answer)
        status = status_of(self._supervisor.wait())
        self._end()
        return status or EXIT_BUG

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "flows.commands", str(theirs.fileno()), str(self._root), self._where]
            self._supervisor: Popen[bytes] = self._running.enter_context(
                started(command, cwd=self._root, env=environment(self._root), descriptors=[theirs.fileno()])
            )
        self._socket = self._running.enter_context(ours)
        return ours

    def _end(self) -> None:
        with self._ending:  # by whoever waits for a command, and by whoever ends the block
            self._running.close()
            self._socket = None


class Pool:
    """Processes for the commands of a project that run at the same time. One is taken up again when it is free."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._running = ExitStack()
        self._free: list[Commands] = []

    def __enter__(self) -> "Pool":
        self._free.append(self._one_more())  # it imports already
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            stop_all()  # at once, not one after the other
        self._running.close()

    def run(self, arguments: Sequence[str], timeout: float, variables: Mapping[str, str]) -> int:
        """As `Commands.run`; for any thread."""
        try:
            commands = self._free.pop()
        except IndexError:
            commands = self._one_more()
        try:
            return commands.run(arguments, timeout, variables)
        finally:
            self._free.append(commands)

    def _one_more(self) -> Commands:
        return self._running.enter_context(Commands(self._root, remote=False))


def main(arguments: Sequence[str]) -> int:
    with importing():
        from dvc.cli import main as dvc
        from dvc.cli.parser import get_main_parser
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        get_main_parser()  # imports every command
    descriptor, root, where = arguments
    adopt_orphans()
    settings = dict(os.environ)
    with socket.socket(fileno=int(descriptor)) as connection, connection.makefile() as commands:
        if where == REMOTE:
            with suppress(DvcException), Repo(root) as repo:  # the command itself will say what is wrong
                _ = repo.cloud.get_remote().fs  # its import takes longest
        for line in commands:
            command, variables = json.loads(line)
            os.environ.clear()
            os.environ.update(settings | variables)
            status = dvc(command)
            end_descendants(GRACE)
            sys.stdout.flush()
            connection.sendall(str(status).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
