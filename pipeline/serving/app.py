"""The server's paths: OpenAI's, health, metrics, and a page to try it."""

import asyncio
import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.params import Serving
from pipeline.serving.engines import Answering, Ask, Engine
from pipeline.serving.errors import RequestError, starting
from pipeline.serving.limits import Gate, Keys, Rates
from pipeline.serving.metrics import Metrics
from pipeline.serving.replies import Form, PlainForm, Reply
from pipeline.serving.schema import Asked, ChatRequest, CompletionRequest
from pipeline.serving.wording import Wording

PAGE = Path(__file__).with_name("page.html")
LARGE_TEXT = 20_000  # characters; what is longer is made into tokens beside the event loop
FIELD = re.compile("[a-z_]+")
MEASURED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics", "/"})


class _Json(Request):
    """JSON as its standard has it: no NaN, no broken UTF-8, no depth without end."""

    async def json(self) -> Any:
        return orjson.loads(await self.body())


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_Json(request.scope, request.receive))

        return strict


Body = ChatRequest | CompletionRequest
Worded = tuple[list[list[int]], bool]
"""Tokens of the prompts, and whether they end with the thinking opened."""
Words = Callable[[Wording], Worded]


class Service:
    """What the paths share."""

    def __init__(self, name: str, options: Serving, answering: Answering) -> None:
        """`name` is the one that clients ask for; it stays when another model takes over."""
        self.name, self.options, self.answering = name, options, answering
        self.metrics = Metrics(answering, name)
        self.mirror: Callable[[Body, Words], None] | None = None  # is told of every request that has been taken

    def engine(self) -> Engine:
        """Who answers a new request. Raises RequestError where nobody does."""
        engine = self.answering.current
        if engine is None or not engine.ready:
            if engine is not None:
                engine.tally.add(0.0, failed=True)
            raise starting()
        return engine

    def check_model(self, model: str) -> None:
        if model != self.name:
            raise RequestError(
                404, f"model: {model[:200]!r}: must be {self.name!r}", param="model", code="model_not_found"
            )

    async def worded(self, words: Words, size: int) -> tuple[Engine, Worded]:
        """Who answers, and what `words` makes of a text of `size` characters with its tokenizer.

        A long text is worked at beside the event loop. Where another model takes over meanwhile, it is done again.
        """
        while True:
            engine = self.engine()
            made = await asyncio.to_thread(words, engine.wording) if size > LARGE_TEXT else words(engine.wording)
            if engine is self.answering.current:
                return engine, made

    async def answer(self, body: Body, words: Words, size: int) -> Reply:
        """Hand prompts to the engine; the reply is what becomes of them."""
        engine, (prompts, opened) = await self.worded(words, size)
        identity = secrets.token_hex(12)
        asks = self.asks(engine, body, prompts, opened, identity)
        assert engine.facts is not None
        form = (Form if isinstance(body, ChatRequest) else PlainForm)(
            identity, self.name, f"fp_{engine.facts.digest[:16]}", body.alternatives is not None
        )
        reply = Reply(
            engine.submit(asks),
            form,
            self.metrics,
            prompt_tokens=sum(map(len, prompts)),
            stream=bool(body.stream),
            usage=body.stream_options is not None and body.stream_options.include_usage,
            seconds=self.options.request_seconds,
        )
        if self.mirror is not None:
            self.mirror(body, words)
        return reply

    def asks(self, engine: Engine, body: Body, prompts: list[list[int]], opened: bool, identity: str) -> list[Ask]:
        """Prompts as the engine takes them. Raises RequestError where it cannot, or not now."""
        samples = body.n or 1
        if not engine.ready:
            raise starting()
        assert engine.facts is not None
        if samples * len(prompts) > self.options.samples:
            rule = f"n times prompts: {samples * len(prompts)}: must be at most {self.options.samples}"
            raise RequestError(400, rule, param="n")
        chat, budget = isinstance(body, ChatRequest), getattr(body, "reasoning_budget", None)
        longest = engine.facts.max_length
        limits = [self._limit(body, len(prompt), longest) for prompt in prompts]
        closing = engine.wording.closing
        if budget is not None and min(limits) <= budget + len(closing) + 1:
            rule = f"reasoning_budget: {budget}: leaves no token of the {min(limits)} for an answer"
            raise RequestError(400, rule, param="reasoning_budget")
        free = self.options.slots + self.options.queue - engine.samples
        if samples * len(prompts) > free:
            wait = max(1, round(self.options.queue / self.options.slots))
            raise RequestError(429, "the queue is full: try again", code="queue_full", retry=wait)
        # With a seed, the same request gets the same text; without, one of its own.
        drawn = identity if body.seed is None else f"seed {body.seed}"
        return [
            Ask(prompt, samples, _sampling(body, limit), drawn, body.alternatives, chat, opened, budget, closing)
            for prompt, limit in zip(prompts, limits, strict=True)
        ]

    def _limit(self, body: Body, prompt: int, longest: int) -> int:
        """The most tokens of a completion to a prompt of so many."""
        if not prompt:
            raise RequestError(400, "the prompt: must have at least one token")
        most, asked = self.options.max_tokens, body.limit
        name = body.limit_name
        if asked is not None and asked > most:
            raise RequestError(400, f"{name}: {asked}: must be at most {most}", param=name)
        room = longest - prompt
        if room < (asked or 1):
            rule = f"the prompt's {prompt} tokens and {name} = {asked or 1} must together be at most {longest}"
            raise RequestError(400, rule, code="context_length_exceeded")
        return asked or min(most, room)


def _sampling(body: Asked, limit: int) -> dict[str, Any]:
    """As params.Sampling takes it. Without a temperature R1's own is taken; cuts have no effect at temperature 0."""
    given = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    options = {name: value for name, value in given.items() if value is not None and (name != "top_k" or value > 0)}
    if options.get("temperature") == 0:
        options = {"temperature": 0}
    return options | {"stop": body.stops, "max_new_tokens": limit}


def routes(service: Service) -> APIRouter:
    router = APIRouter(route_class=_Route)
    page = PAGE.read_text(encoding="utf-8").replace("{{model}}", service.name)
    policy = _policy(page)

    @router.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest) -> Response:
        """Answer a conversation."""
        service.check_model(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError(400, "top_logprobs: needs logprobs: true", param="top_logprobs")
        size = sum(message.size for message in body.messages)

        def words(wording: Wording) -> Worded:
            prompt, opened = wording.chat(body.messages)
            return [prompt], opened

        return await service.answer(body, words, size)

    @router.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest) -> Response:
        """Go on from a text."""
        service.check_model(body.model)
        given = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        prompts: list[Any] = [given] if isinstance(given[0], int) else given
        if len(prompts) > service.options.samples:
            raise RequestError(400, f"prompt: must be at most {service.options.samples}", param="prompt")
        size = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        return await service.answer(body, lambda wording: ([wording.prompt(one) for one in prompts], False), size)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [_model(service)]}

    @router.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        """Whether a model is served."""
        service.check_model(model)
        return _model(service)

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """200 while the server runs."""
        return {"status": "live"}

    @router.get("/health/ready", response_model=None)
    async def ready() -> Response:
        """200 while requests are answered, else 503."""
        engine = service.answering.current
        is_ready = engine is not None and engine.ready
        content = {"status": "ready" if is_ready else "starting", "model": service.name}
        return JSONResponse(content, 200 if is_ready else 503)

    @router.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Counters and gauges for Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", response_model=None, include_in_schema=False)
    async def try_it() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    return router


def _model(service: Service) -> dict[str, Any]:
    engine = service.engine()
    assert engine.facts is not None
    facts = {"parameters": engine.facts.parameters, "activated_parameters": engine.facts.activated}
    return {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "r1flow",
        "version": engine.facts.digest,
        "max_model_len": engine.facts.max_length,
        **facts,
    }


def _policy(page: str) -> str:
    """The page's own script and style, this server, and nothing else."""

    def own(tag: str) -> str:
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    parts = [f"script-src 'sha256-{own('script')}'", f"style-src 'sha256-{own('style')}'", "connect-src 'self'"]
    return "; ".join(["default-src 'none'", *parts, "img-src data:", "base-uri 'none'", "form-action 'none'"])


class _Count:
    """Counts responses by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in MEASURED else "other"
                self._metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


def make_app(
    service: Service,
    keys: list[str],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    connected: Callable[[], int],
) -> FastAPI:
    """The whole application; without keys it answers loopback names only. `connected` counts open connections."""
    app = FastAPI(title="r1flow", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.include_router(routes(service))
    options = service.options

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _refusal(_explain(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        told = RequestError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(told.body, told.status, error.headers)  # such as the methods that a path allows

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return _refusal(RequestError(500, "a bug of the server: its log says more"))

    rates = Rates(options.requests_per_minute)
    app.add_middleware(Gate, keys=Keys(keys), rates=rates, options=options, connected=connected)
    app.add_middleware(_Count, metrics=service.metrics)
    return app


def _refusal(error: RequestError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def _explain(error: RequestValidationError) -> RequestError:
    # Of the errors of the forms that a field may have, the one that lies deepest is about the form that was meant.
    first = max(error.errors(), key=lambda detail: len(detail["loc"]))
    # Between the names pydantic has those of its types, as `list[str]`: they say nothing to a user.
    named = [str(part) for part in first["loc"] if isinstance(part, int) or FIELD.fullmatch(part)]
    place = ".".join(part for part in named if part not in ("body", "str", "int"))
    if first["type"] == "json_invalid":
        return RequestError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if isinstance(error.body, bytes):  # it has not been read as JSON
        return RequestError(400, "Content-Type: must be application/json")
    return RequestError(400, f"{place or 'body'}: {first['msg']}", param=place or None)
