"""`r1flow serve`: the application on uvicorn, the engine behind it, from the first request to the drain.

The listening begins before the model is loaded: /health/live answers at once, /health/ready when requests do. SIGTERM
ends the listening, lets running requests end for `drain_seconds`, and stops the engine.
"""

import asyncio
import gc
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.errors import InputError
from pipeline.params import Machine, Params
from pipeline.promotion.hand import champion_model
from pipeline.promotion.outcome import Announce
from pipeline.running import forget_server, note_server
from pipeline.serving.app import Service, make_app
from pipeline.serving.engines import Answering, EngineLostError
from pipeline.serving.follower import Follower
from pipeline.serving.limits import check_address, read_keys

KEEP_ALIVE_SECONDS = 75  # longer than the minute for which proxies keep a connection
BACKLOG = 1024


def protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 of h11, which bounds headers, with a bound on the time that a header takes."""

    class Protocol(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
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
    """What clients call it: the folder's name, of artifacts/<stage>/model the stage's. Raises InputError for a root."""
    resolved = folder.resolve()
    name = resolved.parent.name if resolved.name == "model" else ""
    if not (name or resolved.name):
        raise InputError(f"{folder}: must be a folder with a name, as clients ask for the model by it")
    return name or resolved.name


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server is to listen, and for which project, if for one."""

    host: str
    port: int  # 0: any that is free
    keys_file: Path | None
    root: Path | None


Work = Callable[[Callable[[], None]], Coroutine[None, None, None]]
"""What brings a model to answer, beside the listening; it calls what it is given once one does."""


def serve(folder: Path, at: Listening, machine: Machine) -> None:
    """Until SIGTERM or SIGINT. Raises InputError where keys are missing, the port is taken, or the folder no model."""
    service = _service(model_name(folder), machine)

    async def load(ready: Callable[[], None]) -> None:
        service.answering.switch(await service.answering.load(folder))
        ready()

    _run(service, load, at, what=str(folder), follows=False)


def serve_champion(root: Path, at: Listening, params: Params, announce: Announce) -> None:
    """Serve what the alias `champion` names, whenever it moves. Raises as `serve`, or where there is no champion."""
    service = _service(champion_model(params), params.machine)
    follower = Follower(root, params, service, announce)
    _run(service, follower.run, at, what=f"the champion of {service.name}", follows=True)


def _service(name: str, machine: Machine) -> Service:
    # One core is left to this process, which has as much to do for a small model as the engine.
    threads = machine.threads or max(1, len(os.sched_getaffinity(0)) - 1)
    return Service(name, machine.serving, Answering(machine.serving, threads))


def _run(service: Service, work: Work, at: Listening, *, what: str, follows: bool) -> None:
    keys = read_keys(at.keys_file)
    check_address(at.host, keys)
    options = service.options
    failed: list[Exception] = []

    def ready() -> None:
        gc.freeze()  # else the collector walks through all that is imported, again and again, for a body of many lists
        if at.root is not None:
            note_server(at.root, _reached(address), service.name, follows=follows)
        print(f"{service.name} answers at {address}{_where(service)}", flush=True)

    async def begin() -> None:
        try:
            await work(ready)
        except Exception as error:  # else the server would say for ever that it is loading
            failed.append(error)
            server.should_exit = True

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(begin())
        yield
        if at.root is not None:
            forget_server(at.root)
        loading.cancel()
        await asyncio.wait([loading])
        await service.answering.stop()

    listener = _listen(at.host, at.port)
    address = f"http://{f'[{at.host}]' if ':' in at.host else at.host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        make_app(service, keys, lifespan, connected=lambda: len(server.server_state.connections)),
        http=protocol(options.receive_seconds),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(options.drain_seconds),
    )
    server = uvicorn.Server(config)
    print(f"loading {what}; health at {address}/health/ready", flush=True)
    # uvicorn raises the signal that has ended it once more when all is done: then it means nothing.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    if failed:
        error = failed[0]
        raise InputError(str(error)) if isinstance(error, EngineLostError | OSError) else error


def _where(service: Service) -> str:
    """That experts stay in the file, where some do."""
    engine = service.answering.current
    assert engine is not None
    assert engine.facts is not None
    return f"; {engine.facts.mapped:.0%} of its experts stay in the file (hot)" if engine.facts.mapped else ""


def _reached(address: str) -> str:
    """As it is reached from this machine: a server that listens everywhere does so here."""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


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
