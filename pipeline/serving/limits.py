"""Who may ask, how often, and how much.

Keys are compared by their SHA-256 digests, each with each and in constant time, so that the time of a refusal tells
nothing about them. Without keys the server listens on this machine only; it then also looks at the Host header, for a
web page elsewhere can have its own name point here (DNS rebinding).
"""

import asyncio
import hashlib
import hmac
import ipaddress
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import InputError
from pipeline.params import Serving
from pipeline.serving.errors import RequestError

KEYS_VARIABLE = "R1FLOW_API_KEYS"
SHORTEST_KEY = 16
CALLERS = 10_000  # whose rates are kept; the one that asked least lately is forgotten
OPEN_PATHS = frozenset({"/", "/health/live", "/health/ready"})  # without a key
ALWAYS = OPEN_PATHS | {"/metrics"}  # answered however many connections there are: else probes would end the server
SMALL_BODY = 2**16  # bytes, for these paths; they take none
CLOSING = frozenset({"body_too_large", "body_too_slow", "connections_full"})  # errors that end the connection


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> list[str]:
    """API keys of a file, one a line, # begins a comment, and of R1FLOW_API_KEYS, separated by commas."""
    named: list[tuple[str, str]] = [
        (KEYS_VARIABLE, key.strip()) for key in environment.get(KEYS_VARIABLE, "").split(",") if key.strip()
    ]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read: {error}") from error
        found = [(f"{file}:{number}", line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
        found = [(where, key) for where, key in found if key]
        if not found:
            raise InputError(f"{file}: must hold at least one API key, one a line")
        named += found
    for where, key in named:
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"{where}: an API key must be {SHORTEST_KEY} or more printable ASCII characters, no space")
    return [key for _, key in named]


def check_address(host: str, keys: list[str]) -> None:
    """Raises InputError for an address that others reach, where no key is asked for."""
    if not _local(host) and not keys:
        raise InputError(
            f"--host {host}: others can reach this address: API keys must be given (--api-keys FILE, {KEYS_VARIABLE})"
        )


def _local(host: str) -> bool:
    """Whether it names this machine alone. No name that a page elsewhere may have does."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Keys:
    """Who may ask."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def caller(self, scope: Scope) -> str:
        """Who asks, for the rates: a key's digest, or an address. Raises RequestError for a missing or wrong key."""
        headers = dict(scope["headers"])
        if not self._digests:
            name = headers.get(b"host", b"").decode("latin-1").lower()
            bare = name[1 : name.index("]")] if name.startswith("[") and "]" in name else name.partition(":")[0]
            if not _local(bare):
                raise RequestError(403, f"Host: {name}: must be localhost, 127.0.0.1 or [::1]", code="host")
            return scope["client"][0] if scope.get("client") else ""
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = _digest(key.strip().decode("latin-1"))
        known = False
        for digest in self._digests:
            known |= hmac.compare_digest(digest, given)
        if scheme.lower() != b"bearer" or not known:
            raise RequestError(401, "Authorization: must be 'Bearer' and a valid API key", code="invalid_api_key")
        return given.hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Rates:
    """At most `per_minute` requests a minute of each caller, as a bucket that fills evenly."""

    def __init__(self, per_minute: int | None) -> None:
        self._most = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when

    def take(self, caller: str, now: float) -> None:
        """One request at time `now`, in seconds. Raises RequestError where it is one too many."""
        if self._most is None:
            return
        left, then = self._buckets.pop(caller, (float(self._most), now))
        left = min(float(self._most), left + (now - then) * self._most / 60)
        self._buckets[caller] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > CALLERS:
            self._buckets.popitem(last=False)
        if left < 1:
            wait = int((1 - left) * 60 / self._most) + 1
            message = f"more than {self._most} requests a minute: wait {wait} s"
            raise RequestError(429, message, code="rate_limit_exceeded", retry=wait)


class Gate:
    """Before everything else: room, the key, the rate, and a body that is whole, not too large and not too late."""

    def __init__(self, app: ASGIApp, keys: Keys, rates: Rates, options: Serving, connected: Callable[[], int]) -> None:
        self._app, self._keys, self._rates, self._connected = app, keys, rates, connected
        self._most, self._seconds, self._connections = options.body_bytes, options.receive_seconds, options.connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn, which has the first scope, leaves out what it answers
        try:
            if scope["path"] not in ALWAYS and self._connected() > self._connections:
                rule = f"more than {self._connections} connections are open: try again"
                raise RequestError(503, rule, code="connections_full", retry=1)
            if scope["path"] not in OPEN_PATHS:
                caller = self._keys.caller(scope)
                if scope["method"] == "POST":
                    self._rates.take(caller, time.monotonic())
            body = await self._body(scope, receive)
        except RequestError as error:
            await answer_error(error, scope, receive, send)
            return
        if body is None:
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """None where the client went."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        most = min(self._most, SMALL_BODY) if scope["path"] in ALWAYS else self._most
        too_large = RequestError(413, f"the body must be at most {most} bytes", code="body_too_large")
        if length.isdigit() and int(length) > most:
            raise too_large
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._seconds):
                while more:
                    message: Any = await receive()
                    if message["type"] != "http.request":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            message = f"the body was not here within {self._seconds:g} s"
            raise RequestError(408, message, code="body_too_slow") from None
        return bytes(body)


async def answer_error(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """The error as a response; the connection is closed where there is one too many or more of a body may come."""
    headers = error.headers | ({"Connection": "close"} if error.code in CLOSING else {})
    await JSONResponse(error.body, error.status, headers)(scope, receive, send)
