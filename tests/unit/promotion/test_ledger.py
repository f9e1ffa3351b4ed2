"""The ledger: appended to by many, whole or found broken; and an outcome that is cut off anywhere is finished."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.promotion.ledger import Entry, Kind, Ledger, champions
from pipeline.promotion.outcome import ASKED, TAGS, Outcomes
from tests.unit.promotion.registry import ONE, THREE, TWO, CutError, Registry, event


def test_who_appends_at_once_makes_one_chain(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: Ledger.at(tmp_path, "l").append(event("refused", ONE, TWO, str(n))), range(24)))
    ledger = Ledger.at(tmp_path, "l")
    assert sorted(int(entry.event.identity) for entry in ledger.entries()) == list(range(24))
    ledger.verify()
    assert len(list((tmp_path / "l").iterdir())) == 24, "no temporary files are left"


def test_one_event_is_recorded_once(tmp_path: Path) -> None:
    ledger = Ledger.at(tmp_path, "l")
    assert ledger.append(event("promoted", None, ONE)) == ledger.append(event("promoted", None, ONE))
    assert ledger.append(event("promoted", ONE, TWO), lambda entries: len(entries) > 1) is None
    assert len(ledger.entries()) == 1


@pytest.mark.parametrize("change", ["word", "word and hash", "gone", "swapped"])
def test_what_was_changed_is_found(tmp_path: Path, change: str) -> None:
    ledger = Ledger.at(tmp_path, "l")
    for number in range(4):
        ledger.append(event("refused", ONE, TWO, str(number)))
    second, third = sorted((tmp_path / "l").iterdir())[1:3]
    text = second.read_text()
    if change == "word":
        second.write_text(text.replace("ada", "bob"))
    elif change == "word and hash":
        content = json.loads(text.replace("ada", "bob"))
        del content["hash"]
        from pipeline.promotion.ledger import _hash, _line

        second.write_text(_line(content | {"hash": _hash(content)}))
    elif change == "gone":
        second.unlink()
    else:
        second.write_text(third.read_text())
        third.write_text(text)
    with pytest.raises(InputError, match=r"entry [23]: "):
        ledger.verify()


def test_champions_are_those_that_one_can_go_back_to(tmp_path: Path) -> None:
    ledger = Ledger.at(tmp_path, "l")
    for one in (
        event("promoted", None, ONE),
        event("promoted", ONE, TWO),
        event("refused", TWO, THREE),
        event("promoted", TWO, THREE, tried=False),
    ):
        ledger.append(one)
    assert champions(ledger.entries(), "m") == [ONE, TWO, THREE]
    assert champions(ledger.entries(), "m", tried=True) == [ONE, TWO]
    assert champions(ledger.entries(), "other") == []
    ledger.append(event("rolled back", THREE, ONE))
    assert champions(ledger.entries(), "m") == [ONE]


def pending(root: Path) -> list[Path]:
    return list((root / "runs" / "serving").glob("pending*"))


@pytest.mark.parametrize("kind", ["promoted", "refused", "rolled back"])
def test_an_outcome_that_is_cut_off_anywhere_is_finished_at_the_next_start(tmp_path: Path, kind: Kind) -> None:
    before, after = (TWO, ONE) if kind == "rolled back" else (ONE, TWO)
    for cut in range(10):
        root, told = tmp_path / str(cut), list[Entry]()
        registry: Any = Registry(champion=2)
        ledger = Ledger.at(root, "l")
        ledger.append(event("promoted", None, before))
        outcomes = Outcomes(root, registry, ledger, told.append)
        registry.cut = cut
        whole = True
        try:
            outcomes.settle(event(kind, before, after, "it"), moves=True)
        except CutError:
            whole = False
        registry.cut = None
        outcomes.resume()
        outcomes.resume()
        assert registry.now == (2 if kind == "promoted" else 1)
        assert [entry.event.kind for entry in ledger.entries()] == ["promoted", kind]
        assert len(told) == 1
        reasons = {number: [tag for tag in TAGS.values() if tag in registry.tags[number]] for number in (1, 2)}
        assert reasons == {1: [], 2: [] if kind == "promoted" else [TAGS[kind]]}
        assert ASKED not in registry.tags[2]
        assert pending(root) == []
        if whole:
            assert cut > 0
            return
    raise AssertionError("more calls than expected")


def test_a_version_that_another_server_answers_with_keeps_the_alias(tmp_path: Path) -> None:
    registry: Any = Registry(champion=2)
    ledger = Ledger.at(tmp_path, "l")
    ledger.append(event("promoted", None, ONE))
    ledger.append(event("promoted", ONE, TWO))
    Outcomes(tmp_path, registry, ledger, lambda entry: None).settle(event("refused", ONE, TWO), moves=True)
    assert registry.now == 2
    assert TAGS["refused"] in registry.tags[2]


def test_outcomes_that_are_settled_at_once_are_each_settled_once(tmp_path: Path) -> None:
    registry: Any = Registry(champion=1)
    told = list[str]()

    def settle(number: int) -> None:
        def announce(entry: Entry) -> None:
            told.append(entry.event.identity)

        ledger = Ledger.at(tmp_path, "l")
        Outcomes(tmp_path, registry, ledger, announce).settle(event("refused", ONE, TWO, str(number)), moves=True)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(settle, range(24)))
    assert sorted(map(int, told)) == list(range(24))
    assert sorted(int(entry.event.identity) for entry in Ledger.at(tmp_path, "l").entries()) == list(range(24))
    assert pending(tmp_path) == []


def test_an_outcome_that_is_cut_off_is_finished_before_the_next_one(tmp_path: Path) -> None:
    registry: Any = Registry(champion=1)
    ledger, told = Ledger.at(tmp_path, "l"), list[Entry]()
    outcomes = Outcomes(tmp_path, registry, ledger, told.append)
    registry.cut = 0
    for _ in range(2):
        with pytest.raises(CutError):
            outcomes.settle(event("refused", ONE, TWO), moves=True)
    registry.cut = None
    outcomes.settle(event("promoted", ONE, THREE), moves=True)
    assert [entry.event.identity for entry in ledger.entries()] == ["refused 2", "promoted 3"]
    assert [entry.number for entry in told] == [1, 1, 2]
    assert pending(tmp_path) == []
