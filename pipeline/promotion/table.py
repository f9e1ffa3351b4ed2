"""The ledger as tables."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from pipeline.promotion.ledger import Entry, Mark

STYLES = {"promoted": "green", "refused": "red", "rolled back": "yellow"}


def history_tables(entries: Sequence[Entry]) -> list[Table]:
    """For each model what happened, from which version to which, who and why; the newest entry last."""
    tables: dict[str, Table] = {}
    for entry in entries:
        event = entry.event
        if event.model not in tables:
            table = tables[event.model] = Table(title=event.model, title_justify="left")
            for name in ("", "when (UTC)", "what", "versions"):
                table.add_column(name, no_wrap=True)
            table.add_column("who")
            table.add_column("why")
        what = Text(event.kind, style=STYLES[event.kind])
        if not event.tried:
            what.append("\nnot tried yet")
        tables[event.model].add_row(
            str(entry.number),
            entry.when[:16].replace("T", " "),
            what,
            f"{_version(event.before)} → {_version(event.after)}",
            Text(event.who),
            Text(event.why),
        )
    return list(tables.values())


def _version(mark: Mark | None) -> str:
    return "none" if mark is None else str(mark.version)
