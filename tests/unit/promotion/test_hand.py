"""By hand, with a server that follows and without one."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.params import load_params
from pipeline.promotion import hand
from pipeline.promotion.hand import Hand
from pipeline.promotion.outcome import ASKED
from pipeline.running import forget_server, note_server
from tests.project import PARAMS
from tests.servers import another_server
from tests.unit.promotion.registry import ONE, TWO, Registry, event

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry(champion=1)
    monkeypatch.setattr(hand, "Aliases", lambda *given: made)
    return made


@pytest.fixture
def mine(tmp_path: Path) -> Hand:
    """On a project whose version 1 answers."""
    (tmp_path / "params.yaml").write_text(PARAMS)
    made = Hand(tmp_path, load_params(tmp_path / "params.yaml"), lambda entry: None)
    made.ledger().append(event("promoted", None, ONE))
    return made


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[None]:
    """This process says that it is one."""
    note_server(tmp_path, "http://here", "m", follows=True)
    yield
    forget_server(tmp_path)


@pytest.mark.usefixtures("follower")
def test_the_one_that_follows_decides_whatever_else_is_served(registry: Registry, mine: Hand) -> None:
    with another_server(mine.root, follows=False), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(mine.promote, "m", 2, "why")
        while registry.now != 2 and not waiting.done():
            time.sleep(0.01)
        decided = mine.ledger().append(event("refused", ONE, TWO))
        assert waiting.result() == decided


@pytest.mark.usefixtures("follower")
def test_what_answers_already_is_not_waited_for_while_another_one_is_tried(registry: Registry, mine: Hand) -> None:
    registry.now = 2
    entry = mine.promote("m", 1, "why")
    assert (entry.number, entry.event.after) == (1, ONE)
    assert registry.now == 1
    assert ASKED not in registry.tags[1]
    assert len(mine.ledger().entries()) == 1


@pytest.mark.usefixtures("follower")
def test_a_move_that_was_never_tried_is_rolled_back_at_once(registry: Registry, mine: Hand) -> None:
    mine.ledger().append(event("promoted", ONE, TWO, tried=False))
    registry.now = 2
    entry = mine.roll_back("m", "why")
    assert (entry.event.kind, entry.event.before, entry.event.after) == ("rolled back", TWO, ONE)
    assert registry.now == 1


def test_a_move_that_the_ledger_knows_is_told_by_the_entry_that_made_it(registry: Registry, mine: Hand) -> None:
    """The alias was moved elsewhere in the registry, and back by hand, while nothing is served."""
    mine.ledger().append(event("refused", ONE, TWO))
    registry.now = 2
    assert mine.promote("m", 1, "why") == mine.ledger().entries()[0]
    assert registry.now == 1
