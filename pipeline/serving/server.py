"""`r1flow serve`: the application on uvicorn, the engine behind it, from the first request to the drain.

The listening begins before the model is loaded: /health/live answers at once, /health/ready when requests do. SIGTERM
ends the listening, lets running requests end for `drain_seconds`, and stops the engine.
"""

import asyncio
import math
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.errors import InputError
from pipeline.params import Machine
from pipeline.serving.app import Service, make_app
from pipeline.serving.engines import Answering, EngineLostError
from pipeline.serving.limits import check_address, read_keys

KEEP_ALIVE_SECONDS = 75  # longer than the minute for which proxies keep a connection
BACKLOG = 1024


def protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 of h11, which bounds headers, with a bound on the time that a header takes."""

    class Protocol(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._late = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            first, idle = self.cycle is None, self.conn.their_state is h11.IDLE
            if not idle or not (first or self.conn.trailing_data[0]):
                self._in_time()
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_time()
            super().connection_lost(exc)

        def _in_time(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Protocol


def model_name(folder: Path) -> str:
    """What clients call it: the folder's name, of artifacts/<stage>/model the stage's."""
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "model" else resolved.name


def serve(folder: Path, host: str, port: int, keys_file: Path | None, machine: Machine) -> None:
    """Until SIGTERM or SIGINT. Raises InputError where keys are missing, the port is taken, or the folder no model."""
    keys = read_keys(keys_file)
    check_address(host, keys)
    options = machine.serving
    # One core is left to this process, which has as much to do for a small model as the engine.
    threads = machine.threads or max(1, len(os.sched_getaffinity(0)) - 1)
    answering = Answering(options, threads)
    service = Service(model_name(folder), options, answering)
    failed: list[Exception] = []

    async def begin() -> None:
        try:
            answering.switch(await answering.load(folder))
            print(f"{service.name} answers at {address}", flush=True)
        except (InputError, EngineLostError) as error:
            failed.append(error)
            server.should_exit = True

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(begin())
        yield
        loading.cancel()
        await asyncio.wait([loading])
        await answering.stop()

    listener = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        make_app(service, keys, lifespan),
        http=protocol(options.receive_seconds),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=options.connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(options.drain_seconds),
    )
    server = uvicorn.Server(config)
    print(f"loading {folder}; health at {address}/health/ready", flush=True)
    # uvicorn raises the signal that has ended it once more when all is done: then it means nothing.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    if failed:
        error = failed[0]
        raise error if isinstance(error, InputError) else InputError(str(error))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot listen: {error.strerror}") from error
    # Else the second packet of an answer waits for the first one's acknowledgement, 40 ms; asyncio sets this only on
    # sockets that it has opened itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
