"""Rows that have passed the rules for single rows, kept on disk until it is known which of them are duplicates.

In memory stays, per row, what finding duplicates takes: two hashes, the split and the row's place (some 30 bytes).
A row is known by its position among all rows spilled, from 0.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.data.words import Hashes


class Spill:
    """Parts of one table in a folder, each of at most a batch of rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offsets = [0]
        self._keys: list[pl.DataFrame] = []

    def append(self, part: pl.DataFrame, *, exact: Hashes, block: Hashes) -> None:
        """`part` has the columns source, file, row and split; `exact` and `block` are its rows' keys (rows,)."""
        part.write_ipc(self._path(len(self._keys)))
        places = part.select(
            pl.col("source", "file").cast(pl.Categorical()), "row", held_out=pl.col("split") == "evaluation"
        )
        self._keys.append(places.with_columns(exact=exact, block=block))
        self.offsets.append(self.offsets[-1] + part.height)

    def keys(self) -> pl.DataFrame:
        """source, file, row, held_out, exact and block of all rows."""
        return pl.concat(self._keys)

    def parts(self, columns: list[str] | None = None) -> Iterator[tuple[int, pl.DataFrame]]:
        """The parts in order, each with the position of its first row."""
        for number, start in enumerate(self.offsets[:-1]):
            yield start, pl.read_ipc(self._path(number), columns=columns)

    def gather(self, positions: NDArray[np.int64], columns: list[str]) -> pl.DataFrame:
        """Columns of texts of the rows at `positions` (ascending), all in memory."""
        empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String()))
        return pl.concat([empty, *self.gather_parts(positions, columns)])

    def gather_parts(self, positions: NDArray[np.int64], columns: list[str]) -> Iterator[pl.DataFrame]:
        """The rows at `positions` (ascending), part by part; parts without any are not read."""
        bounds = np.searchsorted(positions, self.offsets)
        for number, start in enumerate(self.offsets[:-1]):
            inside = positions[bounds[number] : bounds[number + 1]] - start
            if len(inside):
                yield pl.read_ipc(self._path(number), columns=columns)[inside]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.arrow"
