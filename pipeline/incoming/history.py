"""What was accepted on earlier days: a folder or a prefix in a store, as operation.history says.

`accepted-SOURCES.json` has the figures that the next set's drift is measured against, `begun-SOURCES.parquet` the ids
of the problems that the last recipe was started on. Other sources are another data set, with a history of its own.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipeline.store import open_store


class History:
    """Of one choice of sources."""

    def __init__(self, place: str, home: Path, sources: Sequence[str]) -> None:
        """A `place` that is no address counts from `home`."""
        where = place if place.startswith("s3://") else str(home / place)
        if not where.startswith("s3://"):
            Path(where).mkdir(parents=True, exist_ok=True)
        self._store, self._name = open_store(where), "+".join(sorted(sources))

    def accepted(self, to: Path) -> bool:
        """Copy the last accepted set's figures to a file; False where none was accepted yet."""
        return self._fetch(f"accepted-{self._name}.json", to)

    def accept(self, figures: Path) -> None:
        self._store.upload(figures, f"accepted-{self._name}.json")

    def begun(self) -> set[str]:
        """Ids of the problems that the last recipe was started on; none where none was."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "ids.parquet"
            if not self._fetch(f"begun-{self._name}.parquet", file):
                return set()
            return set(pl.read_parquet(file)["id"].to_list())

    def begin(self, ids: pl.Series) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "ids.parquet"
            ids.to_frame().write_parquet(file)
            self._store.upload(file, f"begun-{self._name}.parquet")

    def _fetch(self, key: str, to: Path) -> bool:
        if key not in set(self._store.list(key)):
            return False
        self._store.download(key, to)
        return True
