"""MLflow in a process of its own, the recorder: importing it costs more than many a small stage.

The flow starts one for all that it runs, so the cost is there once; `R1FLOW_RECORDER` says where it listens. A stage
that is run by itself starts one for itself. It ends with whoever started it: the lifeline is its standard input.
"""

import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.managers import BaseManager
from pathlib import Path

from pipeline.params import Tracking
from pipeline.tracking.run import Description, Figure, Run
from pipeline.tracking.store import load

ADDRESS, KEY = "R1FLOW_RECORDER", "R1FLOW_RECORDER_KEY"
START_SECONDS = 120.0  # for importing MLflow on a busy machine
END_SECONDS = 10.0


class _Manager(BaseManager):
    """Speaks to the recorder; every connection has a thread there."""

    run: Callable[[], Run]  # in truth a proxy


_Manager.register("run", Run, exposed=("open", "send", "keep", "close"))


@contextmanager
def recorder() -> Iterator[None]:
    """For this block, a recorder that this process and all that it starts find in the environment: the one that is
    there already, or a new one.
    """
    if _connected() is not None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="r1flow-") as folder:  # an own one: for this user's eyes only
        before = {name: os.environ.get(name) for name in (ADDRESS, KEY)}
        os.environ |= {ADDRESS: f"{folder}/recorder", KEY: secrets.token_hex()}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.tracking"], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class RemoteRun:
    """An open run that the recorder keeps. Its methods raise what `Run`'s do, and EOFError where the recorder ends."""

    def __init__(self, options: Tracking, root: Path, description: Description) -> None:
        self._own = ExitStack()
        try:
            manager = _connected()
            if manager is None:
                self._own.enter_context(recorder())
                manager = _connected()
            if manager is None:
                raise ConnectionError(f"the tracking process does not answer within {START_SECONDS:.0f} s")
            self._run = manager.run()
            self.id = self._run.open(options, root, description)
        except BaseException:
            self._own.close()
            raise

    def send(self, figures: list[Figure]) -> None:
        self._run.send(figures)

    def keep(self, path: str, content: str) -> None:
        self._run.keep(path, content)

    def close(self, status: str) -> None:
        """The run's end, and that of the recorder where it was for this run alone."""
        with self._own:
            self._run.close(status)


def _connected() -> _Manager | None:
    """To the recorder of this process or of one above; None where there is none, or no more."""
    address = os.environ.get(ADDRESS)
    if address is None:
        return None
    manager = _Manager(address, os.environ[KEY].encode())
    deadline = time.monotonic() + START_SECONDS
    while Path(address).parent.is_dir() and time.monotonic() < deadline:
        try:
            manager.connect()
            return manager
        except FileNotFoundError:  # it is about to listen
            time.sleep(0.02)
        except ConnectionRefusedError:  # it was killed
            return None
    return None


def serve() -> None:
    """Be the recorder, until the one who started it ends."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    server = _Manager(os.environ[ADDRESS], os.environ[KEY].encode()).get_server()
    load()  # while the first stage computes
    server.serve_forever()


def _end_with_caller() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
