"""What was accepted on earlier days, in the artifact store below curate/.

`accepted-SOURCES.json` has the figures that the next set's drift is measured against, `begun-SOURCES.parquet` the ids
of the problems that the last recipe was started on. Other sources are another data set, with a history of its own.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipeline.data.measures import set_name
from pipeline.params import Source
from pipeline.store import artifact_store


class History:
    """Of one choice of sources."""

    def __init__(self, place: str, home: Path, sources: Sequence[Source]) -> None:
        """In the store at `place`, a folder of `home` where it is relative."""
        self._store, name = artifact_store(place, home), set_name(sources)
        self._accepted, self._begun = f"curate/accepted-{name}.json", f"curate/begun-{name}.parquet"

    def accepted(self, to: Path) -> bool:
        """Copy the last accepted set's figures to a file; False where none was accepted yet."""
        return self._fetch(self._accepted, to)

    def accept(self, figures: Path) -> None:
        self._store.upload(figures, self._accepted)

    def begun(self) -> set[str]:
        """Ids of the problems that the last recipe was started on; none where none was."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "ids.parquet"
            if not self._fetch(self._begun, file):
                return set()
            return set(pl.read_parquet(file)["id"].to_list())

    def begin(self, ids: pl.Series) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "ids.parquet"
            ids.to_frame().write_parquet(file)
            self._store.upload(file, self._begun)

    def _fetch(self, key: str, to: Path) -> bool:
        if key not in set(self._store.list(key)):
            return False
        self._store.download(key, to)
        return True
