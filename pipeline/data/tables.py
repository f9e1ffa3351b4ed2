"""Tables written part by part, so that a table may be larger than memory."""

from pathlib import Path
from types import TracebackType

import polars as pl
import pyarrow.parquet as pq

from pipeline.records import schema


class TableWriter:
    """Writes a parquet table of `record`s; the same parts give the same bytes. Not atomic: write, then rename."""

    def __init__(self, path: Path, record: type) -> None:
        self.columns = schema(record)
        self.rows = 0
        empty = pl.DataFrame(schema=self.columns).to_arrow(compat_level=pl.CompatLevel.oldest())
        self._writer = pq.ParquetWriter(path, empty.schema, compression="zstd", write_statistics=False)

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, part: pl.DataFrame) -> None:
        """Append rows; columns that the record does not have are left out."""
        part = part.select(*self.columns)
        assert dict(part.schema) == self.columns
        if part.height:
            self._writer.write_table(part.to_arrow(compat_level=pl.CompatLevel.oldest()))
            self.rows += part.height
