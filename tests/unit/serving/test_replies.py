"""A client that does not read: it is given up in time, and nothing of it speaks against the model."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from pipeline.params import Serving
from pipeline.serving import replies
from pipeline.serving.engines import Answering, Call, Engine, Part
from pipeline.serving.metrics import Metrics
from pipeline.serving.replies import Form, Reply

SECONDS = 0.2


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def answer(sent: list[Message], *, stream: bool, whole: bool, stuck: bool) -> Engine:
    """To a client that takes what comes, or is `stuck`; by a model that ends, or does not."""
    engine = Engine(Path("model"), Serving(), threads=1)
    call = Call(engine, samples=1)
    engine._calls[1] = (call, 0)
    call._numbers.append(1)
    call._push(Part(0, "", "7", 1, 0, "end" if whole else None, []))

    async def send(message: Message) -> None:
        sent.append(message)
        if stuck and message["type"] == "http.response.body":
            await never()

    metrics = Metrics(Answering(Serving(), 1), "model")
    form = Form("id", "model", "digest", logprobs=False)
    reply = Reply(call, form, metrics, prompt_tokens=1, stream=stream, usage=False, seconds=SECONDS)
    scope: dict[str, Any] = {"type": "http", "method": "POST", "headers": [], "path": "/"}
    async with asyncio.timeout(30):
        await reply(scope, never, send)
        await engine.drained()
    return engine


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_lets_the_engine_go(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "LAST_SECONDS", SECONDS)
    sent: list[Message] = []
    engine = asyncio.run(answer(sent, stream=stream, whole=True, stuck=True))
    assert [one.failed for one in engine.tally.since(0)] == [False], "the model had answered"
    assert [message["type"] for message in sent].count("http.response.start") == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_that_takes_too_long_has_failed_and_the_client_is_told(stream: bool) -> None:
    sent: list[Message] = []
    engine = asyncio.run(answer(sent, stream=stream, whole=False, stuck=False))
    assert [one.failed for one in engine.tally.since(0)] == [True]
    assert b"request_seconds" in sent[-1]["body"]
    assert not sent[-1].get("more_body", False)
