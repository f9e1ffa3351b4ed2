"""The champion's answers: the judged samples of the model in use, from this project or from a store, pinned by digest.

A digest in params makes the stage stale when the champion changes, which a path alone would not.
"""

from pathlib import Path

import polars as pl

from pipeline.errors import InputError
from pipeline.files import digest
from pipeline.params import Champion
from pipeline.records import Sample, schema
from pipeline.store import open_store

COLUMNS = ("model", "problem_id", "verdict", "verifier")


def read_champion(champion: Champion, root: Path, scratch: Path) -> pl.DataFrame:
    """The champion's checkable problems: `problem_id`, `pass_at_1`, `verifier`, sorted.

    Of `Sample`'s columns those that are needed are read, so a champion of an earlier release can be compared with.
    Raises InputError where the file is missing, not the pinned one, no table of samples, or without the model.
    """
    where = f"evaluation.champion.samples: {champion.samples}"
    path = _local(champion, root, scratch)
    if not path.is_file():
        raise InputError(f"{where}: {path}: no such file")
    if (found := digest(path)) != champion.digest:
        raise InputError(f"evaluation.champion.digest: {champion.digest}: {champion.samples} has digest {found}")
    try:
        table = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{where}: not a readable parquet file: {error}") from error
    expected = {name: kind for name, kind in schema(Sample).items() if name in COLUMNS}
    columns = {name: kind for name, kind in table.schema.items() if name in COLUMNS}
    if columns != expected:
        raise InputError(f"{where}: columns {columns} are not those of Sample: {expected}")
    models = table["model"].unique().sort().to_list()
    if champion.model not in models:
        raise InputError(f"evaluation.champion.model: {champion.model}: not in {champion.samples}, which has {models}")
    judged = table.filter((pl.col("model") == champion.model) & (pl.col("verdict") != "unchecked"))
    by_problem = judged.group_by("problem_id").agg(
        pl.col("verifier").first(), pass_at_1=(pl.col("verdict") == "right").mean()
    )
    return by_problem.sort("problem_id")


def _local(champion: Champion, root: Path, scratch: Path) -> Path:
    """The file on this machine; an object of a store is downloaded to `scratch`."""
    if not champion.samples.startswith("s3://"):
        return root / champion.samples
    folder, _, name = champion.samples.rpartition("/")
    path = scratch / "champion.parquet"
    open_store(folder).download(name, path)
    return path
