"""Prefect's server for a flow that has none: one of its own, until it ends.

Prefect starts one by itself, but imports its whole server to do so, for seconds in which that server does not start.
"""

import atexit
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from pipeline.errors import InputError
from pipeline.process import die_with_parent

APPLICATION = "prefect.server.api.server:create_app"
SETTINGS = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}  # as Prefect's
END_SECONDS = 5.0


@contextmanager
def own_server() -> Iterator[None]:
    """For this block, the server that PREFECT_API_URL names, else a new one. Raises InputError where that fails."""
    if PREFECT_API_URL.value():
        yield
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:  # who asks before it is up waits
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        options = ["--fd", str(listening.fileno()), "--log-level", "error", "--lifespan", "on"]
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--factory", APPLICATION, *options],
            env=os.environ | SETTINGS,
            pass_fds=[listening.fileno()],
            preexec_fn=die_with_parent,
        )
    atexit.register(_end, process)  # not after the block: Prefect's own threads send what they still hold after it
    seconds = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    try:
        urllib.request.urlopen(f"{url}/health", timeout=seconds).close()
    except OSError as error:
        raise InputError(f"{PREFECT_HOME.value()}: Prefect's server does not start there: {error}") from error
    with temporary_settings({PREFECT_API_URL: url}):
        yield


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
