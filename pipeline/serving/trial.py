"""What a loaded model must show before it answers: smoke questions, held-out problems, a share of the live requests.

All of it goes through the engine's process as a client's request would. So nothing is judged that is not served.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.errors import InputError
from pipeline.params import Sampling
from pipeline.records import Problem, read_table
from pipeline.rewards.answer import verify
from pipeline.serving.app import Body, Service, Words
from pipeline.serving.engines import Ask, Call, Engine, EngineLostError
from pipeline.serving.errors import RequestError
from pipeline.serving.schema import Message
from pipeline.serving.tally import Bounds, Ended

PROBLEMS = Path("artifacts") / "curation" / "problems.parquet"
QUEUE_FULL = 429


class TrialFailedError(Exception):
    """A model did not show what it has to. The message says what."""


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out problem."""

    id: str
    prompt: str
    gold: str
    verifier: str


def held_out(root: Path, count: int) -> list[Question]:
    """The first `count` checkable problems of the evaluation split by id: a hash, so a fair draw.

    Raises InputError where the project has none.
    """
    if not count:
        return []
    where = f"machine.serving.follow.problems: {count}: {root / PROBLEMS}"
    if not (root / PROBLEMS).is_file():
        raise InputError(f"{where}: missing; 0 to compare no answers")
    checkable = (pl.col("split") == "evaluation") & (pl.col("verifier") != "none")
    rows = (
        read_table(root / PROBLEMS, Problem)
        .filter(checkable)
        .sort("id")
        .head(count)
        .select("id", "prompt", "gold", "verifier")
        .iter_rows(named=True)
    )
    if not (questions := [Question(**row) for row in rows]):
        raise InputError(f"{where}: has no held-out problem that can be checked; 0 to compare no answers")
    return questions


async def answer(engine: Engine, prompt: str, sampling: Sampling, identity: str) -> str:
    """Its answer to one question, without the thinking; "" where it came to none."""
    assert engine.facts is not None
    try:
        tokens, opened = engine.wording.chat([Message(role="user", content=prompt)])
    except RequestError as error:
        raise TrialFailedError(f"{prompt!r}: {error.message}") from error
    room = engine.facts.max_length - len(tokens)
    if room < 1:
        raise TrialFailedError(f"{prompt!r}: {len(tokens)} tokens: no room within max_length {engine.facts.max_length}")
    options: dict[str, Any] = sampling.model_dump() | {"max_new_tokens": min(room, sampling.max_new_tokens)}
    if not engine.ready:
        raise EngineLostError("the engine has ended")
    call = engine.submit([Ask(tokens, 1, options, identity, None, True, opened, None, engine.wording.closing)])
    try:
        return "".join([part.answer async for parts in call.parts() for part in parts]).strip()
    finally:
        call.close()


async def smoke(engine: Engine, questions: list[str], limit: int) -> None:
    """Raises TrialFailedError where a question gets no answer."""
    greedy = Sampling(temperature=0, top_p=1.0, max_new_tokens=limit)
    for question in questions:
        if not await answer(engine, question, greedy, "smoke"):
            raise TrialFailedError(f"smoke question {question!r}: no answer within {limit} tokens")


async def right_share(engine: Engine, questions: list[Question], sampling: Sampling, width: int) -> float:
    """Of the questions, with `width` of them on the engine at a time."""
    free = asyncio.Semaphore(width)

    async def right(question: Question) -> bool:
        async with free:
            said = await answer(engine, question.prompt, sampling, question.id)
        verdict = await asyncio.to_thread(verify, said, question.gold, question.verifier)
        return verdict.verdict == "right"

    tasks = [asyncio.create_task(right(question)) for question in questions]
    try:
        return sum(await asyncio.gather(*tasks)) / len(tasks)
    finally:
        for task in tasks:
            task.cancel()


class Shadow:
    """Live requests that an engine answers as well, beside the one that answers the client; nobody reads that."""

    def __init__(self, service: Service, engine: Engine, share: float) -> None:
        self._service, self._engine, self._share = service, engine, share
        self._due = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: set[Call] = set()

    async def judge(self, seconds: float, bounds: Bounds) -> list[Ended]:
        """The requests of so many seconds, all of which have ended. Raises TrialFailedError over a bound."""
        start = time.monotonic()
        self._service.mirror = self._mirror
        try:
            await asyncio.sleep(seconds)
        finally:
            self._service.mirror = None
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=bounds.latency)
        for call in list(self._calls):
            call.fail()
            call.close()
        if trouble := self._engine.tally.trouble(start, bounds):
            raise TrialFailedError(f"shadowing: {trouble}")
        return self._engine.tally.since(start)

    def _mirror(self, body: Body, words: Words) -> None:
        self._due += self._share
        if self._due >= 1:
            self._due -= 1
            task = asyncio.create_task(self._answer(body, words))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, body: Body, words: Words) -> None:
        engine = self._engine
        try:
            prompts, opened = await asyncio.to_thread(words, engine.wording)
            call = engine.submit(self._service.asks(engine, body, prompts, opened, secrets.token_hex(12)))
        except RequestError as error:  # the other model took it
            if error.status != QUEUE_FULL:
                engine.tally.add(0.0, failed=True)
            return
        self._calls.add(call)
        try:
            async for _ in call.parts():
                pass
        except EngineLostError:
            pass  # the tally has it
        finally:
            self._calls.discard(call)
            call.close()
