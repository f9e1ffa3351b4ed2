"""`r1flow serve` from its start to its end: keys, full queues, a lost engine, the drain."""

import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest

from pipeline.errors import InputError
from pipeline.params import Machine
from pipeline.serving.server import Listening, model_name, serve
from tests.unit.serving.toys import QUESTION, R1FLOW, Server, until

KEY = "a-key-of-the-tests-0123"


@pytest.fixture
def keys(tmp_path: Path) -> str:
    (tmp_path / "keys").write_text(KEY)
    return str(tmp_path / "keys")


def test_it_does_not_start_where_it_must_not(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="API keys must be given"):
        serve(model, Listening("0.0.0.0", 0, None, None), Machine())
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot listen"):
        serve(model, Listening("127.0.0.1", taken.getsockname()[1], None, None), Machine())
    command = [*R1FLOW, "serve", "--model", str(tmp_path), "--port", "0"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "not a checkpoint" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_is_called_as_its_folder() -> None:
    named = {"/a/artifacts/base/model": "base", "/a/toy": "toy", "/model": "model"}
    assert {path: model_name(Path(path)) for path in named} == named
    with pytest.raises(InputError, match="a folder with a name"):
        model_name(Path("/"))


def test_where_connections_are_too_many_the_probes_are_still_answered(model: Path, tmp_path: Path) -> None:
    """At an address that is not everyone's own, but this machine's."""
    with Server(model, tmp_path / "home", "--host", "127.0.0.2", connections=3) as server:
        assert server.chat(max_tokens=2).status_code == 200
        with ExitStack() as open_connections:
            for _ in range(3):
                open_connections.enter_context(socket.create_connection(("127.0.0.2", server.port)))
            assert server.ready()
            refused = server.chat(max_tokens=2)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "connections_full"
            assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
            told = httpx.get(f"{server.address}/metrics").text
            assert 'r1flow_requests_total{path="/v1/chat/completions",status="503"} 1.0' in told
            large = httpx.request("GET", f"{server.address}/health/live", content=b"x" * 2**17)
            assert large.status_code == 413
        until(lambda: server.chat(max_tokens=2).status_code == 200)


def test_keys_and_rates_hold(model: Path, tmp_path: Path, keys: str) -> None:
    with Server(model, tmp_path / "home", "--api-keys", keys, requests_per_minute=2) as server:
        with pytest.raises(openai.AuthenticationError):
            server.client("a-key-of-the-tests-0124").models.list()
        assert httpx.get(f"{server.address}/metrics").status_code == 401
        assert httpx.get(server.address).status_code == 200
        client = server.client(KEY)
        for _ in range(2):
            client.chat.completions.create(model=server.name, messages=QUESTION, max_tokens=2)
        with pytest.raises(openai.RateLimitError) as late:
            client.chat.completions.create(model=server.name, messages=QUESTION, max_tokens=2)
        assert 0 < int(late.value.response.headers["retry-after"]) <= 30
        client.models.list()  # only what computes is counted


def test_a_killed_engine_fails_its_requests_cleanly_and_comes_back(model: Path, tmp_path: Path) -> None:
    with Server(model, tmp_path / "home", slots=2, max_tokens=200) as server:
        outcomes: list[str] = []
        stop = threading.Event()

        def load(stream: bool) -> None:
            with server.client() as client:
                while not stop.is_set():
                    try:
                        answer = client.chat.completions.create(
                            model=server.name, messages=QUESTION, max_tokens=200, n=4, stream=stream
                        )
                        if stream:
                            assert list(answer)[-1].choices[0].finish_reason
                        outcomes.append("answered")
                    except openai.APIError as error:
                        outcomes.append(error.message)
                        time.sleep(0.05)

        with ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(load, stream) for stream in (True, False, True, False)]
            until(lambda: len(outcomes) >= 4)
            assert set(outcomes) == {"answered"}
            first = server.engine()
            os.kill(first, signal.SIGKILL)
            until(lambda: not server.ready())
            assert httpx.get(f"{server.address}/health/live").status_code == 200
            assert until(server.ready) < 10
            assert server.engine() != first
            answered = outcomes.count("answered")
            until(lambda: outcomes.count("answered") >= answered + 4)
            stop.set()
            for done in loads:
                done.result(60)
        told = set(outcomes) - {"answered"}
        assert any("engine has just ended" in message for message in told)
        assert all("engine has just ended" in message or "model is being loaded" in message for message in told)
        assert server.metric("r1flow_engine_restarts") == 1


def test_a_full_queue_says_so_and_sigterm_lets_running_requests_end(model: Path, tmp_path: Path) -> None:
    with Server(model, tmp_path / "home", slots=1, queue=4, max_tokens=480) as server:
        # Before, as this server is one that is easily filled. Greedily, which writes up to the limit.
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: server.chat(max_tokens=400, temperature=0), range(8)))
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
        engine = server.engine()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(lambda: server.chat(max_tokens=480, temperature=0, n=4))
            until(lambda: server.metric("r1flow_samples_running"))
            assert server.stop() == 0
            answer = running.result(30)
        assert answer.status_code == 200
        assert len(answer.json()["choices"]) == 4
        until(lambda: not Path(f"/proc/{engine}").exists())
