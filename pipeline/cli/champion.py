"""Who is champion: by hand what moving the alias in MLflow does, and the ledger of it."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.common import project

if TYPE_CHECKING:
    from pipeline.promotion.hand import Hand
    from pipeline.promotion.ledger import Entry
    from pipeline.promotion.outcome import Announce

Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="For the record.")]


def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered model, as MLflow calls it.")],
    version: Annotated[int, typer.Argument(metavar="VERSION")],
    why: Why = "by hand",
) -> None:
    """Make a version the champion, as moving the alias in MLflow does. Exit status 3: a server here refused it."""
    _show_entry(_hand().promote(name, version, why), version)


def rollback(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The one that `r1flow serve` follows.")] = None,
    why: Why = "by hand",
) -> None:
    """Make the champion before this one the champion again."""
    from pipeline.promotion.hand import champion_model

    hand = _hand()
    entry = hand.roll_back(name or champion_model(hand.params), why)
    _show_entry(entry, entry.event.after.version)


def history(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Of one registered model only.")] = None,
) -> None:
    """Who was champion when, and what was refused: the ledger, after a look at whether it is whole."""
    from rich.console import Console

    from pipeline.promotion.table import history_tables

    ledger = _hand().ledger()
    ledger.verify()
    entries = [entry for entry in ledger.entries() if name in (None, entry.event.model)]
    Console().print(*(history_tables(entries) if entries else [f"{ledger.place}: no entries yet"]))


def _hand() -> "Hand":
    from pipeline.job import PARAMS_FILE
    from pipeline.params import load_params
    from pipeline.promotion.hand import Hand

    root = project()
    return Hand(root, load_params(root / PARAMS_FILE), announcer())


def _show_entry(entry: "Entry", wanted: int) -> None:
    """What became of a version. Raises GateFailedError where it did not come to be the champion."""
    from rich.console import Console

    from pipeline.errors import GateFailedError
    from pipeline.promotion.table import history_tables

    Console().print(*history_tables([entry]))
    if entry.event.kind == "refused" or entry.event.after.version != wanted:
        raise GateFailedError(f"{entry.event.model} version {wanted}: refused: {entry.event.why}")


def announcer() -> "Announce":
    """Whoever is to hear of a new champion beside the ledger: Prefect, where it has a server."""

    def announce(entry: "Entry") -> None:
        if "PREFECT_API_URL" in os.environ:
            from flows.promotion import emit

            emit(entry)

    return announce
