"""Against a real server on this machine that behaves well and badly."""

import http.server
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, RunStoppedError
from pipeline.params import ExternalJudge
from pipeline.preference.endpoint import Endpoint, Messages

KEY = "sk-secret-0123"
Reply = tuple[int, bytes, dict[str, str]]


def chat(text: str, tokens: int | None = 7) -> Reply:
    body: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    if tokens is not None:
        body["usage"] = {"total_tokens": tokens}
    return 200, json.dumps(body).encode(), {}


class Server:
    """Answers by a function of the number of the request, from 0, and what was asked; keeps what came."""

    def __init__(self) -> None:
        self.behave: Callable[[int, str], Reply] = lambda number, asked: chat(f"to {asked}")
        self.drip_s = 0.0  # before each byte of the body
        self.wait_s = 0.0  # before anything
        self.requests: list[tuple[str, str | None, dict[str, Any]]] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append((self.path, self.headers.get("authorization"), content))
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                time.sleep(outer.wait_s)
                status, body, headers = outer.behave(number, content["messages"][-1]["content"])
                with outer._lock:
                    outer.at_once -= 1
                try:
                    self.send_response(status)
                    for name, value in {"content-length": str(len(body)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for place in range(len(body)) if outer.drip_s else ():
                        self.wfile.write(body[place : place + 1])
                        self.wfile.flush()
                        time.sleep(outer.drip_s)
                    if not outer.drip_s:
                        self.wfile.write(body)
                except OSError:
                    pass  # who asked has gone

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    @property
    def asked(self) -> list[str]:
        return [content["messages"][-1]["content"] for _, _, content in self.requests]


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def ask(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Endpoint]:
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def made(work: str = "work", **changes: Any) -> Endpoint:
        options = {
            "url": server.url, "model": "judge-1", "key_variable": "JUDGE_KEY", "timeout_s": 5.0, "retries": 2,
            "backoff_s": 0.01, "concurrency": 4, "max_calls": 100, "max_tokens": 100_000,
        } | changes  # fmt: skip
        return Endpoint(ExternalJudge.model_validate(options), tmp_path / "judge.jsonl", work)

    return made


def question(text: str) -> Messages:
    return ({"role": "user", "content": text},)


def questions(*texts: str) -> list[Messages]:
    return [question(text) for text in texts]


def test_answers_come_in_order_and_equal_questions_are_asked_once(server: Server, ask: Callable[..., Endpoint]) -> None:
    endpoint = ask()
    assert endpoint.ask(questions("b", "a", "b")) == ["to b", "to a", "to b"]
    assert sorted(server.asked) == ["a", "b"]
    assert (endpoint.calls, endpoint.tokens) == (2, 14)
    path, key, content = server.requests[0]
    assert (path, key) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (content["model"], content["temperature"], content["max_tokens"]) == ("judge-1", 0, 16)


def test_what_was_answered_is_not_asked_again_by_a_run_that_goes_on(
    server: Server, ask: Callable[..., Endpoint]
) -> None:
    ask().ask(questions("a", "b"))
    resumed = ask()
    assert resumed.ask(questions("b", "a", "c")) == ["to b", "to a", "to c"]
    assert len(server.requests) == 3
    assert (resumed.calls, resumed.tokens) == (3, 21)
    other = ask(work="of other params")
    assert other.ask(questions("a")) == ["to a"]
    assert (len(server.requests), other.calls, other.tokens) == (3, 0, 0)
    assert ask(model="judge-2").ask(questions("a")) == ["to a"]
    assert len(server.requests) == 4  # another judge has its own opinion


def test_an_answer_that_a_kill_has_torn_is_asked_for_again(
    server: Server, ask: Callable[..., Endpoint], tmp_path: Path
) -> None:
    ask(concurrency=1).ask(questions("a", "b"))
    cache = tmp_path / "judge.jsonl"
    cache.write_bytes(cache.read_bytes()[:-9])
    assert ask().ask(questions("a", "b")) == ["to a", "to b"]
    assert server.asked == ["a", "b", "b"]
    assert ask().ask(questions("a", "b")) == ["to a", "to b"]
    assert len(server.requests) == 3


BAD: dict[str, Reply] = {
    "500": (500, b"oops", {}),
    "503": (503, b"", {}),
    "429": (429, b"slow down", {"retry-after": "0.01"}),
    "no JSON": (200, b"<html>welcome</html>", {}),
    "no UTF-8": (200, b"\xff\xfe", {}),
    "no chat": (200, b'{"choices": []}', {}),
    "a list": (200, b"[1]", {}),
    "no text": (200, b'{"choices": [{"message": {"content": null}}]}', {}),
    "half a body": (200, b'{"choices"', {"content-length": "4000"}),
    "too much": (200, b"x" * (2**20 + 1), {}),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_may_pass_is_tried_again(fault: str, server: Server, ask: Callable[..., Endpoint]) -> None:
    server.behave = lambda number, asked: BAD[fault] if number < 2 else chat("A")
    endpoint = ask(timeout_s=1.0)
    assert endpoint.ask(questions("a")) == ["A"]
    assert len(server.requests) == 3
    assert endpoint.calls == 3  # the bad ones count as well: they may have been paid for


@pytest.mark.parametrize("fault", BAD)
def test_what_does_not_pass_is_said_after_the_last_attempt(
    fault: str, server: Server, ask: Callable[..., Endpoint]
) -> None:
    server.behave = lambda number, asked: BAD[fault]
    with pytest.raises(InputError, match=r"general_rl\.judge\.url: .*: no answer in 3 attempts, at last: ") as error:
        ask(timeout_s=1.0).ask(questions("a"))
    assert len(server.requests) == 3
    assert len(str(error.value)) < 600


def test_nobody_at_the_address_is_said(ask: Callable[..., Endpoint]) -> None:
    with pytest.raises(InputError, match="no answer in 3 attempts, at last: ConnectError"):
        ask(url="http://127.0.0.1:9/v1").ask(questions("a"))


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422])
def test_what_does_not_pass_by_itself_is_not_tried_again(
    status: int, server: Server, ask: Callable[..., Endpoint]
) -> None:
    server.behave = lambda number, asked: (status, f"key {KEY} is bad".encode(), {"location": "/elsewhere"})
    with pytest.raises(InputError, match=rf"answered with status {status}: key \*\*\* is bad"):
        ask().ask(questions("a"))
    assert len(server.requests) == 1


@pytest.mark.parametrize("slow", ["wait_s", "drip_s"])
def test_an_answer_that_does_not_come_in_time_is_given_up(
    slow: str, server: Server, ask: Callable[..., Endpoint]
) -> None:
    setattr(server, slow, 20.0 if slow == "wait_s" else 0.2)
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"no answer in 1 attempts, at last: (ReadTimeout|no whole answer within)"):
        ask(timeout_s=0.3, retries=0).ask(questions("a"))
    assert time.monotonic() - begun < 5


def test_the_endpoint_says_how_long_to_wait(server: Server, ask: Callable[..., Endpoint]) -> None:
    server.behave = lambda number, asked: (429, b"", {"retry-after": "0.4"}) if number == 0 else chat("A")
    begun = time.monotonic()
    ask().ask(questions("a"))
    assert 0.4 <= time.monotonic() - begun < 3.0


def test_no_more_requests_side_by_side_than_allowed(server: Server, ask: Callable[..., Endpoint]) -> None:
    server.wait_s = 0.05
    ask(concurrency=3).ask(questions(*map(str, range(12))))
    assert server.most_at_once == 3


def test_the_budget_of_calls_is_never_exceeded_and_survives_a_restart(
    server: Server, ask: Callable[..., Endpoint]
) -> None:
    with pytest.raises(RunStoppedError, match=r"max_calls: 5: .* after 5 calls .* kept in a checkpoint"):
        ask(max_calls=5).ask(questions(*map(str, range(12))))
    assert len(server.requests) == 5
    with pytest.raises(RunStoppedError, match="max_calls: 5"):
        ask(max_calls=5).ask(questions(*map(str, range(12))))
    assert len(server.requests) == 5
    assert len(ask(work="raised", max_calls=50).ask(questions(*map(str, range(12))))) == 12
    assert len(server.requests) == 12  # only the seven that were not answered yet


@pytest.mark.parametrize("told", [40, None])
def test_the_budget_of_tokens_is_never_exceeded(told: int | None, server: Server, ask: Callable[..., Endpoint]) -> None:
    server.behave = lambda number, asked: chat("A", told)
    endpoint = ask(max_tokens=200)
    with pytest.raises(RunStoppedError, match="max_tokens: 200"):
        endpoint.ask(questions(*(f"{number:030}" for number in range(20))))
    assert 100 < endpoint.tokens <= 200
    assert len(server.requests) == endpoint.calls < 20


@pytest.mark.parametrize("key", [None, "", "with blank", "line\nbreak", "ключ"])
def test_a_key_that_cannot_be_is_refused_without_being_shown(
    key: str | None, ask: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY") if key is None else monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(InputError, match=r"key_variable: JUDGE_KEY: (is not set|has characters)") as error:
        ask()
    assert not key or key not in str(error.value)


def test_without_a_key_none_is_sent(server: Server, ask: Callable[..., Endpoint]) -> None:
    ask(key_variable=None).ask(questions("a"))
    assert server.requests[0][1] is None


def test_the_key_is_nowhere_but_in_the_request(
    server: Server, ask: Callable[..., Endpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.behave = lambda number, asked: (500, KEY.encode(), {}) if number % 2 else chat("A")
    endpoint = ask(retries=0)
    with pytest.raises(InputError) as error:
        endpoint.ask(questions("a", "b"))
    told = f"{error.value!r} {endpoint!r} {vars(error.value)} {caplog.text} {(tmp_path / 'judge.jsonl').read_text()}"
    assert KEY not in told
    assert KEY not in endpoint.show(f"you sent {KEY}")


@pytest.mark.parametrize("url", ["ftp://a/v1", "http://user:word@a/v1", "https://a/v1?key=1", "a/v1", "http://"])
def test_an_address_with_a_secret_or_of_another_kind_is_refused(url: str, ask: Callable[..., Endpoint]) -> None:
    with pytest.raises(ValueError, match="String should match pattern"):
        ask(url=url)
