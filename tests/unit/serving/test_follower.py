"""The server follows the champion: it takes over, is refused or is rolled back, and no request fails."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.model.decoder import Decoder
from pipeline.promotion.outcome import TAGS
from tests.unit.serving.champions import MODEL, Following, Project, noted, taught
from tests.unit.serving.toys import QUESTION, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def good() -> Decoder:
    return taught("a", "7")


@pytest.fixture(scope="module")
def better() -> Decoder:
    return taught("b", "7")


@contextmanager
def load(server: Following, clients: int = 3) -> Iterator[list[str]]:
    """Requests without a pause; what came of each."""
    outcomes: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with server.client() as client:
            while not stop.is_set():
                try:
                    client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40, temperature=0)
                    outcomes.append("answered")
                except Exception as error:
                    outcomes.append(repr(error))
                time.sleep(0.02)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def break_weights(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 0'))


def test_the_endpoint_follows_or_refuses_and_never_stops(tmp_path: Path, good: Decoder, better: Decoder) -> None:
    project = Project(tmp_path / "project")
    project.release(good)
    second = project.release(better)
    changed, wrong = project.release(good, noted), project.release(taught("a", "8"))
    crashing, killed = project.release(good, break_weights), project.release(better, noted)
    weights = project.stored(changed) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with project.serve() as server, load(server) as outcomes:
        assert server.version() == 1
        project.aliases.move(second)
        assert until(lambda: server.version() == 2, 30) < 15
        bad = [(changed, "SHA-256"), (wrong, "held-out"), (crashing, "hidden_size"), (killed, "ended while it loaded")]
        for version, reason in bad:
            answering = set(server.engines())
            project.aliases.move(version)
            if version is killed:
                until(lambda answering=answering: set(server.engines()) - answering, 60)
                [pid] = set(server.engines()) - answering
                os.kill(pid, signal.SIGKILL)
            until(lambda version=version: ("refused", version.number) in project.kinds(), 60)
            [why] = [entry.event.why for entry in project.ledger() if entry.event.after.version == version.number]
            assert reason in why
            until(lambda: (now := project.aliases.champion(MODEL)) is not None and now.number == 2)
            tags = project.aliases.version(MODEL, version.number).tags
            assert reason in tags[TAGS["refused"]]
            assert server.version() == 2
        asked = project.run("ask", "47+85=?")
        assert server.address in asked.stderr
        assert asked.stdout.split() == ["b", "7"]
        done = project.run("rollback", "--why", "a drill")
        assert done.returncode == 0, done.stderr
        assert server.version() == 1
        refused = project.run("promote", MODEL, str(wrong.number))
        assert refused.returncode == 3
        assert "held-out" in refused.stderr
    assert len(outcomes) > 50
    assert set(outcomes) == {"answered"}
    numbers = [entry.event.after.version for entry in project.ledger()]
    assert numbers == [1, 2, changed.number, wrong.number, crashing.number, killed.number, 1, wrong.number]
    back = project.ledger()[6].event
    assert (back.kind, back.why) == ("rolled back", "a drill")
    assert "rolled back" in project.run("history").stdout.replace("\n", " ")


def test_a_model_that_is_over_a_bound_after_the_switch_is_rolled_back(
    tmp_path: Path, good: Decoder, better: Decoder
) -> None:
    project = Project(tmp_path / "project", latency_seconds=1e-4, requests=3, shadow=0.0, watch_seconds=60.0)
    project.release(good)
    second = project.release(better)
    with project.serve() as server:
        project.aliases.move(second)
        until(lambda: server.version() == 2, 30)
        with load(server) as outcomes:
            until(lambda: ("rolled back", 1) in project.kinds(), 60)
            until(lambda: (now := project.aliases.champion(MODEL)) is not None and now.number == 1)
            assert server.version() == 1
        assert set(outcomes) == {"answered"}
    assert "latency" in project.aliases.version(MODEL, 2).tags[TAGS["rolled back"]]


def test_a_follower_that_is_killed_in_a_switch_comes_back_consistent(
    tmp_path: Path, good: Decoder, better: Decoder
) -> None:
    project = Project(tmp_path / "project", shadow_seconds=0.5)
    project.release(good)
    second = project.release(better)
    with project.serve() as server:
        project.aliases.move(second)
        until(lambda: server.metric("r1flow_engines") == 2, 30)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    assert project.kinds() == [("promoted", 1)]
    with project.serve() as server:
        assert server.version() == 1, "what was known to be good answers first"
        until(lambda: ("promoted", 2) in project.kinds(), 30)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with project.serve() as server:
        assert server.version() == 2
        assert project.kinds() == [("promoted", 1), ("promoted", 2)]
        copies = {entry.name for entry in (project.root / "runs" / "serving" / "models").iterdir()}
        assert copies == set(project.digests.values())
        assert not list((project.root / "runs" / "serving").glob("pending*"))
