"""What becomes of an attempt to change the champion: ledger, tags, alias, in this order, whatever interrupts it.

The event is written down beside the server before anything is done about it, in a file of its own, and taken away when
all is done. Each step may be done twice. So a kill between any two of them is mended by doing all of them again at the
next start. Server and command line finish what they find, one of them at a time, in the order in which it was begun.

A version that is refused or taken back loses the alias to the one that goes on answering: the registry never names as
champion what is not, and moving the alias there again is a new attempt. Where several servers follow one registry, the
first that decides decides about the alias: one that refuses what another answers with says so and leaves it.
"""

import getpass
import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import write_json
from pipeline.promotion.ledger import Entry, Event, Ledger, Mark, champions
from pipeline.running import serving_folder
from pipeline.tracking import Aliases, Version
from pipeline.tracking.store import store_lock

ASKED = "r1flow.asked"  # tag of a version: who moved the alias to it by hand and why, until the server has tried it
TAGS = {"refused": "r1flow.refused", "rolled back": "r1flow.rolled_back"}  # of a version: when and why

Announce = Callable[[Entry], None]


def mark(version: Version) -> Mark:
    return Mark(version.number, version.digest)


def person() -> str:
    """Who sits here."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def ask_for(aliases: Aliases, version: Version, who: str, why: str) -> None:
    """Move the alias, and leave with the version who wants that and why."""
    aliases.tag(version, ASKED, json.dumps({"who": who, "why": why}))
    aliases.move(version)


def asked_by(version: Version) -> tuple[str, str]:
    """Who moved the alias to it, and why, as far as the registry knows."""
    with suppress(ValueError, KeyError, TypeError):
        asked = json.loads(version.tags[ASKED])
        return str(asked["who"]), str(asked["why"])
    return "someone in the registry", "the alias was moved"


class Outcomes:
    """Records and carries out what was decided."""

    def __init__(self, root: Path, aliases: Aliases, ledger: Ledger, announce: Announce) -> None:
        self._root = root
        self._aliases, self._ledger, self._announce = aliases, ledger, announce

    def settle(self, event: Event, *, moves: bool) -> None:
        """`moves`: what is refused or taken back loses the alias. Not so where that was moved before: a person may have
        moved it there again meanwhile.

        Raises ConnectionError where a store does not answer; `resume` then finishes it later.
        """
        file = serving_folder(self._root) / f"pending-{time.time_ns()}-{event.identity}.json"
        write_json(file, {"event": asdict(event), "moves": moves})
        self.resume()

    def resume(self) -> None:
        """Finish what was begun and interrupted, if anything was."""
        with store_lock(self._root, "outcome.lock"):
            for file in sorted(serving_folder(self._root).glob("pending-*.json")):
                pending = json.loads(file.read_text(encoding="utf-8"))
                content = pending["event"]
                marks = {name: content[name] and Mark(**content[name]) for name in ("before", "after")}
                self._finish(file, Event(**(content | marks)), pending["moves"])

    def _finish(self, file: Path, event: Event, moves: bool) -> None:
        entry = self._ledger.append(event, lambda entries: not _recorded(event, entries))
        bad, good = {
            "promoted": (None, event.after),
            "refused": (event.after, event.before),
            "rolled back": (event.before, event.after),
        }[event.kind]
        if bad is not None and (version := self._version(event.model, bad)):
            when = entry.when if entry is not None else ""
            self._aliases.tag(version, TAGS[event.kind], f"{when} {event.why}".strip())
            self._aliases.tag(version, ASKED, None)
            if moves and good is not None:
                self._take_alias(event.model, bad, good)
        if good is not None and event.kind != "refused" and (version := self._version(event.model, good)):
            for tag in (ASKED, *TAGS.values()):
                if tag in version.tags:
                    self._aliases.tag(version, tag, None)
        file.unlink()
        if entry is not None:
            self._announce(entry)

    def _take_alias(self, model: str, bad: Mark, good: Mark) -> None:
        """From `bad`, if that has it and no other server answers with it."""
        answers = champions(self._ledger.entries(), model, tried=True)[-1:] == [bad]
        champion = self._aliases.champion(model)
        if not answers and champion is not None and champion.number == bad.version:
            self._aliases.move(self._aliases.version(model, good.version))

    def _version(self, model: str, wanted: Mark) -> Version | None:
        """None where it was deleted meanwhile."""
        with suppress(InputError):
            return self._aliases.version(model, wanted.version)
        return None


def _recorded(event: Event, entries: Sequence[Entry]) -> bool:
    """Whether the ledger says already that this is the champion: another server, or a person, was faster."""
    if event.kind == "refused":
        return False
    known = {tried: champions(entries, event.model, tried=tried)[-1:] == [event.after] for tried in (False, True)}
    return known[False] and (known[True] or not event.tried)
