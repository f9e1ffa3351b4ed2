"""The ledger as a table."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from pipeline.promotion.ledger import Entry, Mark

STYLES = {"promoted": "green", "refused": "red", "rolled back": "yellow"}


def history_table(entries: Sequence[Entry]) -> Table:
    """Number, time, model, kind, versions, who and why; the newest entry last."""
    table = Table("", "when (UTC)", "model", "what", "from", "to", "who", "why")
    for entry in entries:
        event = entry.event
        what = Text(event.kind, style=STYLES[event.kind])
        if not event.tried:
            what.append(", not tried yet")
        table.add_row(
            str(entry.number),
            entry.when[:19].replace("T", " "),
            event.model,
            what,
            _version(event.before),
            _version(event.after),
            Text(event.who),
            Text(event.why),
        )
    return table


def _version(mark: Mark | None) -> str:
    return "" if mark is None else f"{mark.version} ({mark.digest[:8]})"
