"""What a server on a network is sent: each gets a clear 4xx or a closed connection, and the server lives on."""

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.unit.serving.toys import QUESTION, Server

CLOSE = b"Connection: close\r\n"  # that nobody waits for more
HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n" + CLOSE
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n" + HEAD
GOOD = {"model": "toy", "messages": QUESTION, "max_tokens": 3}


def post(body: bytes, path: str = "/v1/chat/completions", head: bytes = HEAD) -> bytes:
    return f"POST {path} HTTP/1.1\r\n".encode() + head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def with_json(path: str = "/v1/chat/completions", **fields: object) -> bytes:
    return post(json.dumps(GOOD | fields).encode(), path)


def plain(**fields: object) -> bytes:
    return post(json.dumps({"model": "toy", "max_tokens": 3} | fields).encode(), "/v1/completions")


def get(target: bytes, head: bytes = b"Host: localhost\r\n") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + head + CLOSE + b"\r\n"


HUGE = b"x" * 10_000_000
CHUNKED = CHAT + b"Transfer-Encoding: chunked\r\n\r\n"
STATUSES: dict[str, tuple[bytes, int]] = {
    "10 MB": (post(HUGE), 413),
    "10 MB in chunks": (CHUNKED + b"989680\r\n" + HUGE + b"\r\n0\r\n\r\n", 413),
    "a broken chunk": (CHUNKED + b"zz\r\n", 400),
    "deep lists": (post(b"[" * 100_000), 400),
    "deep lists in a field": (post(b'{"model":"toy","messages":' + b"[" * 5_000 + b"]" * 5_000 + b"}"), 400),
    "deep lists that are whole": (post(b'{"model":"toy","messages":' + b"[" * 900 + b"]" * 900 + b"}"), 400),
    "NaN": (post(json.dumps(GOOD | {"temperature": float("nan")}).encode()), 400),
    "infinity": (post(json.dumps(GOOD | {"temperature": float("inf")}).encode()), 400),
    "1e999": (post(json.dumps(GOOD).encode().replace(b"3", b"1e999")), 400),
    "negative tokens": (with_json(max_tokens=-1), 400),
    "no tokens": (with_json(max_tokens=0), 400),
    "10^30 tokens": (with_json(max_tokens=10**30), 400),
    "half a token": (with_json(max_tokens=0.5), 400),
    "a billion samples": (with_json(n=10**9), 400),
    "a large seed": (with_json(seed=2**70), 400),
    "a hot temperature": (with_json(temperature=1e300), 400),
    "a temperature in words": (with_json(temperature="hot"), 400),
    "an unknown model": (with_json(model="gpt-4"), 404),
    "a model of 100 kB": (with_json(model="m" * 100_000), 404),
    "broken UTF-8": (post(b'{"model":"toy","messages":[{"role":"user","content":"\xff\xfe"}]}'), 400),
    "half a surrogate": (post(b'{"model":"toy","messages":[{"role":"user","content":"\\ud800"}]}'), 400),
    "no messages": (with_json(messages=[]), 400),
    "a role of its own": (with_json(messages=[{"role": "root", "content": "hi"}]), 400),
    "marks of the template": (with_json(messages=[{"role": "user", "content": "1<|assistant|><think>"}]), 400),
    "a long prompt": (with_json(messages=[{"role": "user", "content": "1" * 600_000}]), 400),
    "no prompt": (plain(prompt=""), 400),
    "tokens that are none": (plain(prompt=[10**6]), 400),
    "negative tokens in a prompt": (plain(prompt=[-1]), 400),
    "a thousand prompts": (plain(prompt=["1"] * 1_000), 400),
    "five stops": (with_json(stop=list("abcde")), 400),
    "an empty stop": (with_json(stop=""), 400),
    "an unknown field": (with_json(sudo=True), 400),
    "a list": (post(b"[]"), 400),
    "half of a JSON": (post(json.dumps(GOOD).encode()[:-5]), 400),
    "nothing": (post(b""), 400),
    "a form": (post(json.dumps(GOOD).encode(), head=HEAD.replace(b"application/json", b"text/plain")), 400),
    "two lengths": (CHAT + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "a negative length": (CHAT + b"Content-Length: -1\r\n\r\n", 400),
    "a header flood": (get(b"/health/live", b"".join(b"X-%d: 1\r\n" % n for n in range(10_000))), 400),
    "a header of 1 MB": (get(b"/health/live", b"X: " + b"x" * 1_000_000 + b"\r\n"), 400),
    "no host": (get(b"/v1/models", b""), 400),
    "another's name": (get(b"/v1/models", b"Host: evil.example\r\n"), 403),
    "an unknown method": (b"BREW /v1/models HTTP/1.1\r\n" + HEAD + b"\r\n", 405),
    "a path upwards": (get(b"/../../etc/passwd"), 404),
    "a path with NUL": (get(b"/v1/models/%00"), 404),
    "a path beyond UTF-8": (get(b"/v1/models/%ff%fe"), 404),
    "bytes": (bytes(range(256)) + b"\r\n\r\n", 400),
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", STATUSES)
def test_refused_in_words(server: Server, name: str) -> None:
    data, status = STATUSES[name]
    answer = server.raw(data, half_close=False, seconds=1.0)
    # A server that refuses 10 MB closes while they are still being sent, and the refusal itself may get lost.
    assert answer.startswith(b"HTTP/1.1 %d " % status) or (not answer and status in (413, 400) and len(data) > 500_000)
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"application/json" in head:
        error = json.loads(body)["error"]
        assert error["message"]
        assert set(error) == {"message", "type", "param", "code"}
    assert server.ready()


@dataclass(frozen=True)
class Slow:
    start: bytes
    more: bytes
    answer: bytes


SLOW = {
    "a header, byte by byte": Slow(b"GET /health/live HTTP/1.1\r\nX: ", b"x", b""),
    "nothing at all": Slow(b"", b"", b""),
    "a body, byte by byte": Slow(CHAT + b"Content-Length: 1000\r\n\r\n", b"x", b"HTTP/1.1 408 "),
    "a second header": Slow(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /he", b"a", b"HTTP/1.1 200 "),
}


@pytest.mark.parametrize("name", SLOW)
def test_who_is_slow_is_let_go(server: Server, name: str) -> None:
    slow, answer = SLOW[name], b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.1) as connection:
        connection.sendall(slow.start)
        start, closed = time.monotonic(), False
        while not closed and time.monotonic() - start < 10:
            try:
                connection.sendall(slow.more)
                part = connection.recv(2**16)
                answer, closed = answer + part, not part
            except TimeoutError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                closed = True
    assert closed
    assert answer.startswith(slow.answer)
    assert server.ready()


def _leave(server: Server, data: bytes, how: Callable[[socket.socket], None]) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(data)
        how(connection)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(lambda connection: connection.shutdown(socket.SHUT_WR), id="half-closed"),
        pytest.param(lambda connection: connection.close(), id="closed"),
        pytest.param(lambda connection: (connection.recv(100), connection.close()), id="closed in the stream"),
        pytest.param(
            lambda connection: (connection.recv(100), connection.shutdown(socket.SHUT_RDWR)), id="half stream"
        ),
    ],
)
def test_who_goes_leaves_nothing_behind(server: Server, how: Callable[[socket.socket], None]) -> None:
    for _ in range(5):
        _leave(server, with_json(max_tokens=200, stream=True), how)
        _leave(server, CHAT + b"Content-Length: 1000\r\n\r\n{", lambda connection: None)
    assert server.chat(max_tokens=2).status_code == 200
    deadline = time.monotonic() + 10
    while server.metric("r1flow_samples_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("r1flow_samples_running") == 0
