"""The artifact store from the command line."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.common import project

if TYPE_CHECKING:
    from pipeline.store import Store

commands = typer.Typer(
    no_args_is_help=True, help="The artifact store, machine.store: what lies there, and what can go."
)


@commands.command("list")
def list_holdings() -> None:
    """Show what lies in the store: releases, and the checkpoints of each piece of work."""
    from rich.console import Console

    from pipeline.store.collect import holdings
    from pipeline.store.table import holdings_table

    Console().print(holdings_table(holdings(_store())))


@commands.command("collect")
def collect(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it. Without this it is only listed.")] = False,
    unused_days: Annotated[
        float, typer.Option(min=1, help="After which checkpoints whose work has not gone on can go.")
    ] = 30.0,
) -> None:
    """List or remove what nothing references, of what is older than a day."""
    from pipeline.store.collect import remove, unreferenced

    place = _store()
    found = unreferenced(place, unused_days=unused_days)
    for entry in remove(place, found) if delete else found:
        print(f"{entry.size:>14,} {entry.key}")
    size = sum(entry.size for entry in found)
    print(f"{len(found)} objects, {size:,} bytes{'' if delete or not found else ': --delete removes them'}")


def _store() -> "Store":
    from pipeline.errors import InputError
    from pipeline.job import PARAMS_FILE
    from pipeline.params import load_params
    from pipeline.store import artifact_store

    root = project()
    place = load_params(root / PARAMS_FILE).machine.store
    if place is None:
        raise InputError(f"{root / PARAMS_FILE}: machine.store: null: names no artifact store")
    return artifact_store(place, root)
