"""The releases of a run and what they are called in the registry, as a table."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.report import table
from pipeline.figures import percent, scaled
from pipeline.release.record import read_record, registered_file
from pipeline.tracking import Registered
from pipeline.tracking.registry import CHAMPION


def read_registered(root: Path) -> list[Registered]:
    """The versions that the last registration found or made; none where there was no registration."""
    path = registered_file(root)
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [Registered(**row | {"aliases": tuple(row["aliases"])}) for row in rows]


def releases_table(root: Path) -> Table:
    """Release, pass@1 with its interval, activated parameters, version in the registry and whether that is champion."""
    versions = {version.release: version for version in read_registered(root)}
    columns = ("release", "pass@1", "95 % interval", "activated", "version")
    rows = table(*columns, broken=("95 % interval", "version"))
    for release in read_record(root).releases:
        figure, version = release.evaluation["pass_at_1"], versions.get(release.name)
        rows.add_row(
            release.name,
            percent(figure["mean"]),
            f"{percent(figure['low'])} to {percent(figure['high'])}",
            scaled(release.activated_parameters),
            f"{version.version}{' champion' * (CHAMPION in version.aliases)}" if version else "",
        )
    models = sorted({version.model.replace(version.release, "RELEASE") for version in versions.values()})
    rows.caption = f"registered as {', '.join(models)}" if models else None
    return rows
