"""Engines in processes of their own, kept alive, and which of them answers.

    answering = Answering(options, threads)
    first = await answering.load(folder)   # a new process; the one that answers does not notice
    answering.switch(first)                # new requests go to it
    call = answering.current.submit(...)
    await answering.drop(old)              # when its last request has ended

An engine whose process ends is started again from the same folder. Requests that were on it end with EngineLostError.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pipeline
from pipeline.errors import InputError
from pipeline.params import Serving
from pipeline.serving import frames
from pipeline.serving.tally import Tally
from pipeline.serving.wording import Wording

LONGEST_WAIT = 30.0  # seconds between two attempts to start an engine that ends before it is ready
STOP_SECONDS = 5.0  # in which an engine that is told to stop does so, before it is killed

logger = logging.getLogger(__name__)


class EngineLostError(Exception):
    """The engine ended, or is not there yet, so that a request cannot be answered. Another attempt may do."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a sample's next tokens add; see worker.Update."""

    number: int
    thinking: str
    answer: str
    tokens: int
    thinking_tokens: int
    finish: str | None
    logprobs: list[Any]

    def __add__(self, later: "Part") -> "Part":
        """Both of one sample."""
        return Part(
            self.number,
            self.thinking + later.thinking,
            self.answer + later.answer,
            self.tokens + later.tokens,
            self.thinking_tokens + later.thinking_tokens,
            later.finish,
            self.logprobs + later.logprobs,
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """What an engine is asked for; see generation.requests.Request."""

    prompt: list[int]
    samples: int
    sampling: dict[str, Any]  # of params.Sampling
    identity: str
    alternatives: int | None
    chat: bool  # thinking and answer are told apart
    opened: bool  # the prompt opens the thinking
    budget: int | None  # tokens of thinking
    closing: list[int]  # what closes it for the model


class Call:
    """Prompts that an engine works at. Close it: what has not ended is then given up."""

    def __init__(self, engine: "Engine", samples: int) -> None:
        self.engine, self.samples = engine, samples
        self._numbers: list[int] = []
        self._parts: deque[Part] = deque()
        self._news = asyncio.Event()
        self._left, self._lost, self._closed, self._counted = samples, False, False, False
        self._start = time.monotonic()

    async def parts(self) -> AsyncIterator[list[Part]]:
        """What has come since, as often as something has, until all samples have ended or the call is closed.

        Raises EngineLostError where the engine ends before.
        """
        left = self.samples
        while left and not self._closed:
            await self._news.wait()
            self._news.clear()
            parts = list(self._parts)
            self._parts.clear()
            if parts:
                left -= sum(part.finish is not None for part in parts)
                yield parts
            if self._lost and left and not self._closed:
                raise EngineLostError("the engine ended while it worked at this request")

    @property
    def ended(self) -> bool:
        """Whether every sample has come to its end."""
        return self._left == 0

    def fail(self) -> None:
        """Given up for it takes too long: the model, unless it has ended and only its reader is slow."""
        self._end(failed=True)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.engine._forget(self._numbers, cancel=self._left > 0 and not self._lost)
            self._news.set()

    def _push(self, part: Part) -> None:
        self._parts.append(part)
        self._left -= part.finish is not None
        if part.finish is not None and self.ended:
            self._end(failed=False)
        self._news.set()

    def _lose(self) -> None:
        self._end(failed=True)
        self._lost = True
        self._news.set()

    def _end(self, *, failed: bool) -> None:
        """How it ended counts once, by what came first."""
        if not self._counted:
            self._counted = True
            self.engine.tally.add(time.monotonic() - self._start, failed=failed)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a loaded model is."""

    digest: str
    parameters: int
    activated: int
    max_length: int  # of prompt and completion together
    mapped: float  # share of the experts that stay in the file


@dataclass(eq=False)
class Engine:
    """One model in a process of its own. Asynchronous, for one event loop."""

    folder: Path
    options: Serving
    threads: int
    restarts: int = 0
    tally: Tally = field(default_factory=Tally)
    facts: Facts | None = None  # of the model, once it was ready
    experts: list[list[int]] | None = None  # tokens that each expert got, by layer, since the process started
    ready: bool = False
    pid: int | None = None
    _calls: dict[int, tuple[Call, int]] = field(default_factory=dict)  # and its number of the request's first sample
    _wording: Wording | None = None
    _asked: int = 0
    _stopping: bool = False
    _writer: asyncio.StreamWriter | None = None
    _keeper: "asyncio.Task[None] | None" = None
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Until it is ready. Raises InputError where the folder is no model, EngineLostError where loading ends it."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(started))
        try:
            await started
            self._wording = await asyncio.to_thread(Wording, self.folder)
        except BaseException:
            await self.stop()
            raise

    def submit(self, asks: list[Ask]) -> Call:
        """The samples of the second prompt count on from those of the first. The engine must be ready."""
        assert self.ready, "the engine is not ready"
        assert self._writer is not None
        call, first = Call(self, sum(ask.samples for ask in asks)), 0
        for ask in asks:
            self._asked += 1
            self._calls[self._asked] = (call, first)
            call._numbers.append(self._asked)
            message = {name: getattr(ask, name) for name in Ask.__slots__}
            self._writer.write(frames.pack({"do": "submit", "request": self._asked} | message))
            first += ask.samples
        return call

    @property
    def wording(self) -> Wording:
        assert self._wording is not None, "the engine has not been ready yet"
        return self._wording

    @property
    def samples(self) -> int:
        """That wait or are written."""
        return sum(call._left for call in {call for call, _ in self._calls.values()})

    async def drained(self) -> None:
        """Until no request is on it."""
        while self._calls:
            self._idle.clear()
            await self._idle.wait()

    async def stop(self) -> None:
        self._stopping = True
        if self._writer is not None:
            self._writer.close()
        if self._keeper is not None:
            _, late = await asyncio.wait([self._keeper], timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
                await asyncio.wait([task])

    # ------------------------------------------------------------ the process

    async def _keep(self, started: "asyncio.Future[None]") -> None:
        """Run the process again and again, until it is told to stop, or ends before it was ready once."""
        wait = 0.0
        while not self._stopping:
            begun = time.monotonic()
            try:
                await self._run(started)
            except (InputError, OSError) as error:  # no model; or no process can be started
                if not started.done():
                    started.set_exception(error if isinstance(error, InputError) else EngineLostError(str(error)))
                    return
                logger.error("engine: %s", error)
            if not started.done():
                started.set_exception(EngineLostError(f"{self.folder}: the engine ended while it loaded this model"))
                return
            if not self._stopping:
                self.restarts += 1
                logger.error("engine: process %s ended; starting another", self.pid)
                stood = time.monotonic() - begun > LONGEST_WAIT
                await asyncio.sleep(wait)
                wait = 0.0 if stood else min(LONGEST_WAIT, 2 * wait + 1)

    async def _run(self, started: "asyncio.Future[None]") -> None:
        """One process, from its start to its end."""
        ours, theirs = socket.socketpair()
        path = [str(Path(pipeline.__path__[0]).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pipeline.serving", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
                start_new_session=True,
            )
        self.pid = process.pid
        reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            await self._listen(reader, self._writer, started)
        except (asyncio.IncompleteReadError, OSError):
            pass  # it is gone, whatever it was doing
        finally:
            self.ready = False
            self._writer.close()
            for call, _ in self._calls.values():
                call._lose()
            await _ended(process)

    async def _listen(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, started: "asyncio.Future[None]"
    ) -> None:
        options = {name: getattr(self.options, name) for name in ("slots", "max_length", "dtype", "hot")}
        writer.write(frames.pack({"folder": str(self.folder), "threads": self.threads} | options))
        first = await frames.read(reader)
        if "refused" in first:
            raise InputError(first["refused"])
        self.facts, self.ready = Facts(**first["ready"]), True
        if not started.done():
            started.set_result(None)
        while True:
            message = await frames.read(reader)
            self.experts = message.get("experts", self.experts)
            for request, number, *part in message["updates"]:
                if request in self._calls:
                    call, first = self._calls[request]
                    call._push(Part(first + number, *part))

    def _forget(self, numbers: list[int], *, cancel: bool) -> None:
        for number in numbers:
            del self._calls[number]
            if cancel and self._writer is not None:
                self._writer.write(frames.pack({"do": "cancel", "request": number}))
        if not self._calls:
            self._idle.set()


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Until the process is gone, whose socket is closed."""
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
    except asyncio.CancelledError:
        process.kill()
        raise


class Answering:
    """Which engine answers new requests. The follower of a champion drives it: load, switch, drop."""

    def __init__(self, options: Serving, threads: int) -> None:
        self.current: Engine | None = None
        self.engines: list[Engine] = []  # all that are loaded or loading
        self._options, self._threads = options, threads

    async def load(self, folder: Path) -> Engine:
        """A model beside those that are there; raises as `Engine.start` does, and then nothing has changed."""
        engine = Engine(folder, self._options, self._threads)
        self.engines.append(engine)
        try:
            await engine.start()
        except BaseException:
            self.engines.remove(engine)
            raise
        return engine

    def switch(self, engine: Engine) -> Engine | None:
        """New requests go to `engine`; returns the one that answered so far, for `drop`."""
        assert engine in self.engines
        before, self.current = self.current, engine
        return before

    async def drop(self, engine: Engine) -> None:
        """Stop an engine once its last request has ended."""
        assert engine is not self.current, "new requests still go to it"
        await engine.drained()
        self.engines.remove(engine)
        await engine.stop()

    async def stop(self) -> None:
        """Stop all of them, whatever they do."""
        engines, self.engines, self.current = self.engines, [], None
        await asyncio.gather(*(engine.stop() for engine in engines))
