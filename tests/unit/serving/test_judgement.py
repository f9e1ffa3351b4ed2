"""What the follower makes of trouble: whether it speaks against a version, and against another server's decision."""

import asyncio
import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.params import load_params
from pipeline.promotion.ledger import Ledger
from pipeline.serving import follower
from pipeline.serving.trial import TrialFailedError
from tests.project import PARAMS
from tests.unit.promotion.test_ledger import Registry

DISK = OSError(errno.ENOSPC, "No space left on device")
STORE = ConnectionError("the registry does not answer")


class Loaded:
    """A model's engine."""

    restarts = 0


class Answers:
    """As pipeline.serving.engines.Answering, without processes."""

    def __init__(self) -> None:
        self.current: Any = None
        self.engines: list[Any] = []

    async def load(self, folder: Path) -> Any:
        self.engines.append(Loaded())
        return self.engines[-1]

    def switch(self, engine: Any) -> Any:
        before, self.current = self.current, engine
        return before

    async def drop(self, engine: Any) -> None:
        self.engines.remove(engine)


class Machine:
    """A server's follower on a machine of its own; registry and ledger are everybody's."""

    def __init__(self, root: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root.mkdir()
        follow = {"ledger": str(ledger), "problems": 0, "shadow": 0.0, "watch_seconds": 0.0}
        params = PARAMS.replace("machine: {retries: 1}", f"machine: {{serving: {json.dumps({'follow': follow})}}}")
        (root / "params.yaml").write_text(params)
        counter = SimpleNamespace(labels=lambda kind: SimpleNamespace(inc=lambda: None))
        service: Any = SimpleNamespace(answering=Answers(), metrics=SimpleNamespace(promotions=counter))
        self.troubles: list[Exception] = []  # of the next downloads
        self.fetched, self.bad = 0, False
        monkeypatch.setattr(follower, "FETCH_SECONDS", 0.0)
        self.follower = follower.Follower(root, load_params(root / "params.yaml"), service, lambda entry: None)

    def do(self, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
        def fetch(aliases: Any, version: Any, root: Path) -> Path:
            self.fetched += 1
            if self.troubles:
                raise self.troubles.pop(0)
            return root / version.digest

        async def smoke(engine: Any, questions: Any, limit: int) -> None:
            if self.bad:
                raise TrialFailedError("no answer")

        monkeypatch.setattr(follower, "fetch", fetch)
        monkeypatch.setattr(follower, "smoke", smoke)
        asyncio.run(work())

    @property
    def now(self) -> int:
        assert self.follower._now is not None
        return self.follower._now.number


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry(champion=1)
    monkeypatch.setattr(follower, "Aliases", lambda options, root: registry)
    return registry


def kinds(ledger: Path) -> list[tuple[str, int]]:
    return [(entry.event.kind, entry.event.after.version) for entry in Ledger.at(ledger, str(ledger)).entries()]


@pytest.mark.parametrize("trouble", [DISK, STORE])
def test_what_says_nothing_about_a_version_does_not_refuse_it(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    ledger = tmp_path / "ledger"
    here = Machine(tmp_path / "here", ledger, monkeypatch)
    here.do(monkeypatch, here.follower._start)
    registry.now, here.troubles = 2, [trouble] * 3
    with pytest.raises(OSError, match=str(trouble.args[-1])):
        here.do(monkeypatch, here.follower._step)
    assert (here.now, registry.now, kinds(ledger)) == (1, 2, [("promoted", 1)])
    here.troubles.clear()
    here.do(monkeypatch, here.follower._step)
    assert (here.now, registry.now, kinds(ledger)) == (2, 2, [("promoted", 1), ("promoted", 2)])


def test_trouble_at_a_start_does_not_roll_back(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "ledger"
    first = Machine(tmp_path / "first", ledger, monkeypatch)
    first.do(monkeypatch, first.follower._start)
    registry.now = 2
    first.do(monkeypatch, first.follower._step)
    second = Machine(tmp_path / "second", ledger, monkeypatch)
    second.troubles = [STORE] * 3
    with pytest.raises(ConnectionError):
        second.do(monkeypatch, second.follower._start)
    assert (registry.now, kinds(ledger)) == (2, [("promoted", 1), ("promoted", 2)])


def test_two_servers_of_one_registry_do_not_fight_over_the_alias(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "ledger"
    here, there = (Machine(tmp_path / name, ledger, monkeypatch) for name in ("here", "there"))
    for machine in (here, there):
        machine.do(monkeypatch, machine.follower._start)
    registry.now, there.bad = 2, True
    for _ in range(3):
        for machine in (here, there):
            machine.do(monkeypatch, machine.follower._step)
    assert (here.now, there.now, registry.now) == (2, 1, 2)
    assert kinds(ledger) == [("promoted", 1), ("promoted", 2), ("refused", 2)]
    assert there.fetched == 2, "what it has refused it does not try again and again"
    registry.now = 1
    for machine in (here, there):
        machine.do(monkeypatch, machine.follower._step)
    registry.now, there.bad = 2, False
    there.do(monkeypatch, there.follower._step)
    assert there.now == 2, "moving the alias there again is a new attempt"


def test_an_alias_that_a_person_moves_again_at_once_is_not_taken_back(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Machine(tmp_path / "here", tmp_path / "ledger", monkeypatch)
    here.do(monkeypatch, here.follower._start)
    registry.now = 2
    here.do(monkeypatch, here.follower._step)
    switch = here.follower._switch

    def switch_and_move(version: Any, engine: Any) -> None:
        switch(version, engine)
        registry.now = 2  # between the switch back to 1 and its record

    registry.now = 1
    monkeypatch.setattr(here.follower, "_switch", switch_and_move)
    here.do(monkeypatch, here.follower._step)
    assert (here.now, registry.now) == (1, 2)
    monkeypatch.setattr(here.follower, "_switch", switch)
    here.do(monkeypatch, here.follower._step)
    assert (here.now, registry.now) == (2, 2)


def test_a_registry_that_fails_at_the_end_of_a_trial_leaves_no_engine_behind(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Machine(tmp_path / "here", tmp_path / "ledger", monkeypatch)
    here.do(monkeypatch, here.follower._start)
    registry.now, champion = 2, registry.champion
    looks = iter([champion, lambda model: (_ for _ in ()).throw(STORE)])
    monkeypatch.setattr(registry, "champion", lambda model: next(looks)(model))
    with pytest.raises(ConnectionError):
        here.do(monkeypatch, here.follower._step)
    answering = here.follower._service.answering
    assert answering.engines == [answering.current]
    assert here.now == 1
