"""What a store holds, as a table."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.table import Table

from pipeline.store.collect import Holding


def holdings_table(holdings: Sequence[Holding]) -> Table:
    """Archive, its pointers, folders, objects, MiB, and when a pointer was moved last."""
    table = Table("archive", "pointers", "folders", "objects", "MiB", "moved")
    for one in holdings:
        moved = datetime.fromtimestamp(one.moved, UTC).isoformat(" ", "minutes") if one.pointers else ""
        counts = (len(one.manifests), len(one.objects), f"{one.size / 2**20:,.1f}")
        table.add_row(one.prefix or "releases", ", ".join(one.pointers), *map(str, counts), moved)
    return table
