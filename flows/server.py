"""Prefect's server for a flow that has none: one of its own, until it ends.

Prefect starts one by itself, but imports its whole server to do so, for seconds in which that server does not start.
"""

import atexit
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from pipeline.errors import InputError
from pipeline.process import die_with_parent

SERVE = """
import sys
from pipeline.process import importing
with importing():
    import uvicorn
    from prefect.server.api.server import create_app
uvicorn.run(create_app, factory=True, fd=int(sys.argv[1]), log_level="error", lifespan="on")
"""
SETTINGS = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}  # as Prefect's
ANSWER_SECONDS, END_SECONDS = 10.0, 5.0


@contextmanager
def own_server() -> Iterator[None]:
    """For this block, the server that PREFECT_API_URL names, else a new one. Raises InputError where none answers."""
    if url := PREFECT_API_URL.value():
        require_answer(url)
        yield
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:  # who asks before it is up waits
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        process = start(listening, os.environ | SETTINGS)
    atexit.register(_end, process)  # not after the block: Prefect's own threads send what they still hold after it
    seconds = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    try:
        urllib.request.urlopen(f"{url}/health", timeout=seconds).close()
    except OSError as error:
        raise InputError(f"{PREFECT_HOME.value()}: Prefect's server does not start there: {error}") from error
    with temporary_settings({PREFECT_API_URL: url}):
        yield


def require_answer(url: str) -> None:
    """Raises InputError where no Prefect server answers at the address."""
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers, if only to ask who we are
    except (OSError, ValueError) as error:
        raise InputError(f"PREFECT_API_URL: {url}: no Prefect server answers there: {error}") from error


def start(
    listening: socket.socket, settings: Mapping[str, str], log: IO[str] | None = None
) -> "subprocess.Popen[bytes]":
    """Prefect's server, which listens there and says to `log` what it has to say. It ends with this process."""
    descriptor = listening.fileno()
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, str(descriptor)],
        env=settings,
        stdout=log,
        stderr=log,
        pass_fds=[descriptor],
        preexec_fn=die_with_parent,
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
