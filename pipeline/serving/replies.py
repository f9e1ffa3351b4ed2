"""What the model says as a response: streamed or whole, for chat or plain completions.

Tokens that come together are one event: what a client is too slow to take is gathered, not queued.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeline.serving.engines import Call, EngineLostError, Part
from pipeline.serving.errors import RequestError, late, lost
from pipeline.serving.limits import answer_error
from pipeline.serving.metrics import Metrics

LAST_SECONDS = 5.0  # in which a client that is told of a failure has to take it
REASONS = {"end": "stop", "stop": "stop", "length": "length"}


@dataclass(slots=True, eq=False)
class Choice:
    """One sample so far."""

    thinking: str = ""
    answer: str = ""
    finish: str | None = None
    logprobs: list[Any] = field(default_factory=list)

    def add(self, part: Part) -> None:
        self.thinking += part.thinking
        self.answer += part.answer
        self.finish = part.finish
        self.logprobs += part.logprobs


class Form:
    """How a response is written; of chat completions."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, identity: str, model: str, fingerprint: str, logprobs: bool) -> None:
        self._head = {"id": self.prefix + identity, "created": int(time.time()), "model": model}
        self._head["system_fingerprint"] = fingerprint
        self._logprobs = logprobs

    def response(self, choices: list[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        written = [
            {"index": index, **self.body(choice), "finish_reason": choice.finish}
            for index, choice in enumerate(choices)
        ]
        return self._head | {"object": self.whole, "choices": written, "usage": usage}

    def event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        return self._head | {"object": self.chunk, "choices": choices} | ({} if usage is None else {"usage": usage})

    def body(self, choice: Choice) -> dict[str, Any]:
        thought = choice.thinking or None
        message = {"role": "assistant", "content": choice.answer, "reasoning": thought, "reasoning_content": thought}
        return {"message": message | {"refusal": None}, "logprobs": self.likelihoods(choice.logprobs, 0)}

    def delta(self, part: Part, first: bool, offset: int) -> dict[str, Any]:
        delta: dict[str, str] = {"role": "assistant"} if first else {}
        if part.thinking:
            delta |= {"reasoning": part.thinking, "reasoning_content": part.thinking}
        if part.answer or first:
            delta["content"] = part.answer
        return {"delta": delta, "logprobs": self.likelihoods(part.logprobs, offset)}

    def likelihoods(self, tokens: list[Any], offset: int) -> dict[str, Any] | None:
        """`offset`: characters of the answer before these tokens."""
        if not self._logprobs:
            return None
        content = [_token(text, own) | {"top_logprobs": [_token(*one) for one in top]} for text, own, top in tokens]
        return {"content": content, "refusal": None}


class PlainForm(Form):
    """Of plain completions."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    def body(self, choice: Choice) -> dict[str, Any]:
        return {"text": choice.answer, "logprobs": self.likelihoods(choice.logprobs, 0)}

    def delta(self, part: Part, first: bool, offset: int) -> dict[str, Any]:
        return {"text": part.answer, "logprobs": self.likelihoods(part.logprobs, offset)}

    def likelihoods(self, tokens: list[Any], offset: int) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        offsets = []
        for text, _, _ in tokens:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": [text for text, _, _ in tokens],
            "token_logprobs": [own for _, own, _ in tokens],
            "top_logprobs": [dict(top) for _, _, top in tokens],
            "text_offset": offsets,
        }


def _token(text: str, log_probability: float) -> dict[str, Any]:
    """A part of a character has no bytes here: the tokenizer gives its text alone."""
    known = "\ufffd" not in text
    return {"token": text, "logprob": log_probability, "bytes": list(text.encode()) if known else None}


class Reply(Response):
    """A call's parts to the client. The client gone, the call is closed; so it is in the end, whatever happens."""

    def __init__(
        self, call: Call, form: Form, metrics: Metrics, *, prompt_tokens: int, stream: bool, usage: bool, seconds: float
    ) -> None:
        super().__init__()
        self._call, self._form, self._metrics = call, form, metrics
        self._stream, self._usage, self._seconds = stream, usage, seconds
        self._start, self._begun, self._done = time.perf_counter(), False, False
        self._prompt, self._written, self._thought = prompt_tokens, 0, 0
        metrics.prompt.inc(prompt_tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        try:
            async with asyncio.timeout(self._seconds):
                await (self._streamed(send) if self._stream else self._whole(scope, receive, send))
        except TimeoutError:
            self._call.fail()
            await self._fail(late(self._seconds), scope, receive, send)
        except EngineLostError:
            await self._fail(lost(), scope, receive, send)
        finally:
            watch.cancel()
            self._call.close()
            self._measure()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._call.close()

    async def _parts(self) -> AsyncIterator[list[Part]]:
        first = True
        async for parts in self._call.parts():
            if first and any(part.tokens for part in parts):
                first = False
                self._metrics.first.observe(time.perf_counter() - self._start)
            self._written += sum(part.tokens for part in parts)
            self._thought += sum(part.thinking_tokens for part in parts)
            yield parts

    async def _streamed(self, send: Send) -> None:
        choices = [Choice() for _ in range(self._call.samples)]
        seen: set[int] = set()
        async for parts in self._parts():
            events = bytearray()
            for part in _merged(parts):
                choice = choices[part.number]
                if not (part.thinking or part.answer or part.finish):
                    continue
                delta = self._form.delta(part, part.number not in seen, len(choice.answer))
                choice.answer += part.answer
                seen.add(part.number)
                finish = None if part.finish is None else REASONS[part.finish]
                events += _event(self._form.event([{"index": part.number, **delta, "finish_reason": finish}], None))
            if events:
                await self._send(send, bytes(events))
        if self._call.ended:
            if self._usage:
                await self._send(send, _event(self._form.event([], self._used())))
            await self._send(send, b"data: [DONE]\n\n", more=False)
            self._done = True

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        choices = [Choice() for _ in range(self._call.samples)]
        async for parts in self._parts():
            for part in parts:
                choices[part.number].add(part)
        if self._call.ended:
            for choice in choices:
                choice.finish = REASONS[choice.finish or ""]
            content = orjson.dumps(self._form.response(choices, self._used()))
            self._begun = True
            await Response(content, media_type="application/json")(scope, receive, send)
            self._done = True

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        if not self._begun:
            self._begun = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            headers.append((b"x-accel-buffering", b"no"))  # proxies would hold events back
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})

    async def _fail(self, error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
        """As a response, or in the stream that has begun, where OpenAI's clients look for it.

        Who does not read is not waited for, or the engine would never be let go.
        """
        self._call.close()
        self._done = True
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                if not self._begun:
                    await answer_error(error, scope, receive, send)
                elif self._stream:
                    await self._send(send, _event(error.body), more=False)

    def _used(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._written,
            "total_tokens": self._prompt + self._written,
            "completion_tokens_details": {"reasoning_tokens": self._thought},
        }

    def _measure(self) -> None:
        metrics = self._metrics
        metrics.written.inc(self._written)
        metrics.thinking.inc(self._thought)
        if self._done:
            metrics.latency.observe(time.perf_counter() - self._start)
            metrics.length.observe(self._written)
        else:
            metrics.gone.inc()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _merged(parts: list[Part]) -> list[Part]:
    """One part for each sample."""
    merged: dict[int, Part] = {}
    for part in parts:
        before = merged.get(part.number)
        merged[part.number] = part if before is None else before + part
    return list(merged.values())
