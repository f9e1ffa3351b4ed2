"""The ledger: appended to by many, whole or found broken; and an outcome that is cut off anywhere is finished."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.promotion.ledger import Entry, Event, Kind, Ledger, Mark, champions
from pipeline.promotion.outcome import ASKED, TAGS, Outcomes
from pipeline.tracking import Version

ONE, TWO, THREE = (Mark(number, str(number) * 64) for number in (1, 2, 3))


def event(kind: Kind, before: Mark | None, after: Mark, identity: str = "", *, tried: bool = True) -> Event:
    return Event(identity or f"{kind} {after}", "ada", kind, "m", before, after, "why", tried)


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


class CutError(BaseException):
    """As a kill: nothing catches it."""


class Registry:
    """As pipeline.tracking.Aliases; ends at its call number `cut`."""

    def __init__(self, champion: int) -> None:
        self.now, self.tags = champion, {number: {ASKED: "{}"} for number in (1, 2, 3)}
        self.cut: int | None = None

    def _call(self) -> None:
        if self.cut is not None:
            self.cut -= 1
            if self.cut < 0:
                raise CutError

    def champion(self, model: str) -> Version | None:
        self._call()
        return self.version(model, self.now)

    def version(self, model: str, number: int) -> Version:
        return Version(model, number, str(number) * 64, "", dict(self.tags[number]))

    def move(self, version: Version) -> None:
        self._call()
        self.now = version.number

    def tag(self, version: Version, name: str, value: str | None) -> None:
        self._call()
        if value is None:
            self.tags[version.number].pop(name, None)
        else:
            self.tags[version.number][name] = value


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
        assert not (root / "runs" / "serving" / "pending.json").exists()
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
