"""The record of promotions in the artifact store: what came to answer, what was refused or taken back, and why.

MLflow keeps no history of an alias. Here each entry is an object of its own, one line of JSON under a number, created
and never written again: the store itself refuses a second one of the same number, so of two that append at once one
looks again and takes the next. `cat runs/ledger/*` gives JSON lines.

Each line names the SHA-256 of the line before it and its own. So an entry that was changed, taken out or put in between
is found. Not found are entries cut off at the end, or a chain that was written anew from some entry on: against
those the store's own means help (versions, object lock).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.store import Store, open_store

Kind = Literal["promoted", "refused", "rolled back"]
FIRST = "0" * 64  # stands for the hash before the first entry
DIGITS = 8  # of an entry's number in its name


@dataclass(frozen=True, slots=True)
class Mark:
    """A version of a registered model."""

    version: int
    digest: str  # of the release; "" where it had none


@dataclass(frozen=True, slots=True)
class Event:
    """What is to be recorded: what was champion `before`, what was promoted, refused or gone back to `after` that."""

    identity: str  # recorded once, however often it is tried
    who: str
    kind: Kind
    model: str  # the registered model's name
    before: Mark | None
    after: Mark
    why: str
    tried: bool  # by a server, which answers with what is champion now; a person alone has only moved the alias


@dataclass(frozen=True, slots=True)
class Entry:
    """A recorded event."""

    number: int
    when: str  # ISO 8601, UTC
    event: Event
    previous: str  # hash of the entry before
    hash: str


class Ledger:
    """Of one store."""

    def __init__(self, store: Store, place: str) -> None:
        self._store, self.place = store, place
        self._known: list[Entry] = []  # what was read so far: entries never change

    @classmethod
    def at(cls, root: Path, place: str) -> "Ledger":
        """`place` as params have it: s3://… or a folder in the project."""
        where = place if place.startswith("s3://") else str(root / place)
        if not where.startswith("s3://"):
            Path(where).mkdir(parents=True, exist_ok=True)
        return cls(open_store(where), where)

    def entries(self) -> list[Entry]:
        """All of them, in order. Raises InputError where the chain is broken."""
        keys = [key for key in self._store.list() if key.endswith(".json") and not key.startswith(".")]
        if len(keys) < len(self._known):
            raise InputError(f"{self.place}: entry {len(self._known)}: was there and is missing")
        for number in range(len(self._known) + 1, len(keys) + 1):
            if keys[number - 1] != _key(number):
                raise InputError(f"{self.place}: entry {number}: missing")
            self._known.append(self._read(number, self._known[-1].hash if self._known else FIRST))
        return list(self._known)

    def verify(self) -> None:
        """Read everything again. Raises InputError where an entry was changed or is missing."""
        self._known = []
        self.entries()

    def append(self, event: Event, allowed: Callable[[Sequence[Entry]], bool] = lambda entries: True) -> Entry | None:
        """Record an event, once; None where the entries that there are by then do not allow it."""
        while True:
            entries = self.entries()
            if known := [entry for entry in entries if entry.event.identity == event.identity]:
                return known[0]
            if not allowed(entries):
                return None
            number, previous = len(entries) + 1, entries[-1].hash if entries else FIRST
            stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
            content = {"number": number, "when": stamp, **_written(event), "previous": previous}
            if self._store.create(_key(number), _line(content | {"hash": _hash(content)}).encode()):
                return self._read(number, previous)

    def _read(self, number: int, previous: str) -> Entry:
        where = f"{self.place}: entry {number}"
        found = self._store.read(_key(number))
        if found is None:
            raise InputError(f"{where}: missing")
        try:
            text = found.data.decode()
            content = json.loads(text)
            own = content.pop("hash")
            entry = Entry(content["number"], content["when"], _event(content), content["previous"], own)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: no entry of a ledger: {error}") from error
        if text != _line(content | {"hash": own}) or _hash(content) != own or entry.number != number:
            raise InputError(f"{where}: was changed: its content does not have the hash that it names")
        if entry.previous != previous:
            raise InputError(f"{where}: follows another entry than the one before it: that one was changed")
        return entry


def _written(event: Event) -> dict[str, Any]:
    """As the line has it: `from` and `to`, which Python does not allow as names."""
    content = asdict(event)
    return {{"before": "from", "after": "to"}.get(name, name): value for name, value in content.items()}


def _event(content: dict[str, Any]) -> Event:
    plain = {name: str(content[name]) for name in ("identity", "who", "model", "why")}
    before = Mark(**content["from"]) if content["from"] else None
    return Event(
        kind=content["kind"], before=before, after=Mark(**content["to"]), tried=content["tried"] is True, **plain
    )


def _key(number: int) -> str:
    return f"{number:0{DIGITS}}.json"


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(_line(content).encode()).hexdigest()


def champions(entries: Sequence[Entry], model: str, *, tried: bool = False) -> list[Mark]:
    """The versions that one could roll back to, one after the other, and last the champion.

    `tried`: by what servers have recorded alone, so what answers.
    """
    marks: list[Mark] = []
    for event in (entry.event for entry in entries if entry.event.model == model):
        if tried and not event.tried:
            continue
        if event.kind == "promoted":
            if marks[-1:] != [event.after]:
                marks.append(event.after)
        elif event.kind == "rolled back":
            if event.after in marks[:-1]:
                while marks[-1] != event.after:
                    marks.pop()
            else:
                marks = [event.after]
    return marks
