"""The releases of a run and what they are called in the registry, as a table."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.figures import percent, scaled
from pipeline.release.record import read_record, registered_file
from pipeline.tracking import Registered


def read_registered(root: Path) -> list[Registered]:
    """The versions that the last registration found or made; none where there was no registration."""
    path = registered_file(root)
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [Registered(**row | {"aliases": tuple(row["aliases"])}) for row in rows]


def releases_table(root: Path) -> Table:
    """Release, kind, pass@1 with its interval, size, version in the registry and the aliases on it, digest."""
    versions = {version.release: version for version in read_registered(root)}
    table = Table("release", "kind", "pass@1", "activated", "parameters", "registered as", "aliases", "digest")
    for release in read_record(root).releases:
        figure, version = release.evaluation["pass_at_1"], versions.get(release.name)
        table.add_row(
            release.name,
            f"{release.kind} of {release.of}" if release.of else release.kind,
            f"{percent(figure['mean'])} ({percent(figure['low'])} to {percent(figure['high'])})",
            scaled(release.activated_parameters),
            scaled(release.parameters),
            f"{version.model} version {version.version}" if version else "",
            ", ".join(version.aliases) if version else "",
            release.digest[:12],
        )
    return table
