"""What a person does on the command line instead of in MLflow's page: promote, roll back.

Both move the alias. Where a server of this project follows it, the server decides, and its decision is waited for.
Where none does, the move itself is recorded, and the next server that starts tries the version before it answers
with it. A version that answers already, while another one that has the alias is tried, needs no decision.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.promotion.ledger import Entry, Event, Kind, Ledger, champions
from pipeline.promotion.outcome import Announce, Outcomes, ask_for, mark, person
from pipeline.running import find_server
from pipeline.tracking import Aliases, Version

LOOK_SECONDS = 0.5  # between two looks for the server's decision


def champion_model(params: Params) -> str:
    """The registered model whose champion `r1flow serve` follows."""
    return f"{params.deployment.registry}-{params.machine.serving.follow.release}"


@dataclass(frozen=True)
class Hand:
    """On one project's registry."""

    root: Path
    params: Params
    announce: Announce

    def promote(self, model: str, number: int, why: str) -> Entry:
        """What became of it, or for one that answers already the entry by which it came to.

        Raises InputError where there is no such version or it is champion already.
        """
        aliases, ledger = Aliases(self.params.tracking, self.root), self.ledger()
        version = aliases.version(model, number)
        now = aliases.champion(model)
        if now is not None and now.number == number:
            raise InputError(f"{model}: version {number}: is the champion already")
        return self._move(aliases, ledger, version, "promoted", why)

    def roll_back(self, model: str, why: str) -> Entry:
        """To the champion before. Raises InputError where the ledger knows none."""
        aliases, ledger = Aliases(self.params.tracking, self.root), self.ledger()
        marks = champions(ledger.entries(), model)
        if len(marks) < 2:
            raise InputError(f"{model}: nothing to roll back to: {ledger.place} knows no champion before this one")
        version = aliases.version(model, marks[-2].version)
        return self._move(aliases, ledger, version, "rolled back", why)

    def ledger(self) -> Ledger:
        return Ledger.at(self.root, self.params.machine.ledger)

    def _move(self, aliases: Aliases, ledger: Ledger, version: Version, kind: Kind, why: str) -> Entry:
        entries, server = ledger.entries(), find_server(self.root, follows=True)
        answers = champions(entries, version.model, tried=True)[-1:] == [mark(version)]
        if server is not None and server.model == version.model and not answers:
            ask_for(aliases, version, person(), why)
            follow = self.params.machine.serving.follow
            return _decision(ledger, version, len(entries), follow.trial_seconds + 10 * follow.every_seconds)
        marks = champions(entries, version.model)
        before = aliases.champion(version.model)
        aliases.move(version)
        was = mark(before) if before is not None else marks[-1] if marks else None
        event = Event(uuid.uuid4().hex, person(), kind, version.model, was, mark(version), why, tried=False)
        Outcomes(self.root, aliases, ledger, self.announce).settle(event, moves=False)
        return _last_move(ledger.entries(), version)


def _last_move(entries: Sequence[Entry], version: Version) -> Entry:
    """The one that made this version, which is champion, the champion."""
    moves = [entry for entry in entries if entry.event.model == version.model and entry.event.kind != "refused"]
    return next(entry for entry in reversed(moves) if entry.event.after == mark(version))


def _decision(ledger: Ledger, version: Version, known: int, seconds: float) -> Entry:
    """The entry after the `known` ones that is about this version: it took over, or did not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for entry in ledger.entries()[known:]:
            if entry.event.model == version.model and mark(version) in (entry.event.before, entry.event.after):
                return entry
        time.sleep(LOOK_SECONDS)
    raise InputError(f"{version.model} version {version.number}: the server has not decided within {seconds:.0f} s")
