"""Where rows come from. Every kind of source is read as a stream of `Raw` rows, one at a time, in a fixed order.

A file that is not what its source says (missing, no parquet, UTF-16, gzip, a column that is not there) stops the run
with an InputError: the user named the wrong file. A row that is broken goes on, marked, and ends in the quarantine.
Lines of white space are not rows; a byte order mark at a file's start and CRLF are accepted. Of a key that occurs twice
in a JSON object the last value counts, as in every common JSON reader.
"""

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.quarantine import CONTENT_CHARS
from pipeline.errors import InputError
from pipeline.generated import problems as generated
from pipeline.params import FieldMap, FileSource, GeneratedSource, GymSource, HubSource, Source
from pipeline.store import open_store

_FOREIGN = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"PAR1": "parquet",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""How files start that are certainly not JSON lines."""

DATA_VARIABLE = "R1FLOW_DATA"

_NARROW = ("float16", "float32")

_BOM = b"\xef\xbb\xbf"


class Raw(NamedTuple):
    """One row as it came."""

    file: str
    row: int
    columns: dict[str, Any]
    content: str  # cut to CONTENT_CHARS
    size: int  # about how much memory it takes
    fault: str  # "" where it could be read


def read(source: Source, *, seed: int, root: Path, downloads: Path, line_bytes: int) -> Iterator[Raw]:
    """The rows of a source. Relative paths count from `root`; objects of a store are downloaded to `downloads`."""
    match source:
        case GeneratedSource():
            yield from _rows("", generated.problems(source, seed))
        case FileSource():
            for path, name in _files(source, root, downloads):
                yield from (
                    _json_lines(path, name, line_bytes)
                    if source.kind == "jsonl"
                    else _parquet(path, name, used_columns(source.fields))
                )
        case HubSource():
            yield from _rows(source.dataset, _hub(source, root))
        case GymSource():
            yield from _rows(source.dataset, _gym(source, seed))


def data_root(root: Path) -> Path:
    """Where relative paths of sources count from: the folder that R1FLOW_DATA names, else the project folder `root`.

    Data lies elsewhere on every machine, and params are the same on all of them; the digests hold the content. Raises
    InputError where the variable names no folder.
    """
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        return root
    folder = root / named
    if not folder.is_dir():
        raise InputError(f"{DATA_VARIABLE}: {named}: no such folder; relative paths of sources count from it")
    return folder


def used_columns(fields: FieldMap) -> list[str]:
    """The columns that a field map names."""
    named = (fields.prompt, fields.gold, fields.thinking, fields.difficulty, fields.verifier, fields.task)
    return list(dict.fromkeys(name for name in (*named, fields.language) if name is not None))


def _rows(file: str, rows: Iterable[dict[str, Any]]) -> Iterator[Raw]:
    for number, columns in enumerate(rows, start=1):
        content = json.dumps(columns, ensure_ascii=False, default=str)
        yield Raw(file, number, columns, content[:CONTENT_CHARS], len(content), "")


def local_files(path: str, root: Path) -> list[tuple[Path, str]]:
    """The files of a path or a glob, sorted, each with the name that is shown to people. Raises InputError for none."""
    exact = (root / path).is_file()  # a name may hold characters that mean something in a glob
    matched = glob.iglob(path, root_dir=root, recursive=True)  # noqa: PTH207 -- Path.glob takes no absolute pattern
    names = [path] if exact else sorted(set(matched))  # `**/**` matches a file several times
    found = [(root / name, name) for name in names if (root / name).is_file()]
    if not found:
        raise InputError(f"{path}: no such file (looked in {root})")
    return found


def listing_prefix(key: str) -> str:
    """What the keys that `named_keys` may take begin with: of a glob the part before its first special character."""
    return re.split(r"[*?\[]", key, maxsplit=1)[0]


def named_keys(key: str, there: Iterable[str]) -> list[str]:
    """Those keys of a bucket that `s3://bucket/<key>` names: that very one, else those that it matches as a glob, else
    those below it as a folder. What has a `_` or `.` in front there (`_SUCCESS`, `_temporary/`) is no data."""
    keys = [name for name in there if not name.endswith("/")]  # such a one stands for a folder
    if key in keys:
        return [key]
    if matched := [name for name in keys if _matches(name.split("/"), key.split("/"))]:
        return matched
    folder = f"{key.rstrip('/')}/" if key else ""
    below = (name for name in keys if name.startswith(folder))
    return [name for name in below if not re.search("(^|/)[_.]", name[len(folder) :])]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """By the rules for local files: `*` stays within a folder, `**` is any folders or none, neither is a hidden one."""
    if not parts or not pattern:
        return not parts and [*pattern] in ([], ["**"])
    hidden = parts[0].startswith(".") and not pattern[0].startswith(".")
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (not hidden and _matches(parts[1:], pattern))
    return not hidden and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _files(source: FileSource, root: Path, downloads: Path) -> list[tuple[Path, str]]:
    if source.path.startswith("s3://"):
        return _download(source, downloads)
    return local_files(source.path, root)


def _download(source: FileSource, downloads: Path) -> list[tuple[Path, str]]:
    bucket, _, key = source.path.removeprefix("s3://").partition("/")
    store = open_store(f"s3://{bucket}")
    keys = named_keys(key, store.list(listing_prefix(key)))
    if not keys:
        raise InputError(f"curation.sources.{source.name}.path: {source.path}: nothing there")
    for name in keys:
        store.download(name, downloads / name)
    return [(downloads / name, f"s3://{bucket}/{name}") for name in keys]


def _json_lines(path: Path, name: str, line_bytes: int) -> Iterator[Raw]:
    with path.open("rb", buffering=1 << 20) as file:
        start = file.read(4)
        for signature, kind in _FOREIGN.items():
            if start.startswith(signature):
                raise InputError(f"{path}: is {kind}, not JSON lines in UTF-8")
        file.seek(len(_BOM) if start.startswith(_BOM) else 0)
        number = 0
        while line := file.readline(line_bytes + 2):  # a line of just the limit may end with CRLF
            number += 1
            text = line.rstrip(b"\r\n")
            oversized = len(text) > line_bytes
            while oversized and not line.endswith(b"\n") and (line := file.readline(line_bytes)):
                pass  # the rest of a line is skipped piece by piece, so no line needs more memory than the limit
            if text.strip():
                columns, fault = ({}, f"line longer than {line_bytes} bytes") if oversized else _parse(text)
                content = text[: 4 * CONTENT_CHARS].decode(errors="replace")[:CONTENT_CHARS]
                yield Raw(name, number, columns, content, len(text), fault)


def _parse(line: bytes) -> tuple[dict[str, Any], str]:
    """A line's columns, or none of them and the fault."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return {}, _explain(line, error)
    if not isinstance(value, dict):
        return {}, f"a JSON {type(value).__name__}, not an object"
    return value, ""


def _explain(line: bytes, error: orjson.JSONDecodeError) -> str:
    if b"\0" in line:
        return f"NUL byte at byte {line.index(0)}"
    try:
        line.decode()
    except UnicodeDecodeError as undecodable:
        return f"not UTF-8 at byte {undecodable.start}: {undecodable.reason}"
    return f"not JSON at character {error.pos}: {error.msg}"


def _parquet(path: Path, name: str, columns: list[str]) -> Iterator[Raw]:
    try:
        with pq.ParquetFile(path) as file:
            missing = [column for column in columns if column not in file.schema_arrow.names]
            if missing:
                raise InputError(f"{path}: no column {missing}; the file has {file.schema_arrow.names}")
            number = 0
            for batch in file.iter_batches(batch_size=10_000, columns=columns):
                batch.validate(full=True)
                for raw in _rows(name, _shortest(batch).to_pylist()):
                    yield raw._replace(row=number + raw.row)
                number += batch.num_rows
    except InputError:
        raise
    except (pa.ArrowException, OSError, OverflowError, LookupError, ValueError) as error:  # also of values Python lacks
        raise InputError(f"{path}: not a readable parquet file: {error}") from error


def _shortest(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Narrow floats as the doubles that are written alike: 0.1, where the nearest float32 is 0.10000000149011612."""
    for index, field in enumerate(batch.schema):
        if not (pa.types.is_float16(field.type) or pa.types.is_float32(field.type)):
            continue
        narrow = batch.column(index).to_numpy(zero_copy_only=False)
        whole = np.trunc(narrow) == narrow  # exact already, and the shortest digits of a large one are not
        wide = np.where(whole, narrow.astype(np.float64), narrow.astype(str).astype(np.float64))
        column = pa.array(wide, mask=batch.column(index).is_null().to_numpy(zero_copy_only=False))
        batch = batch.set_column(index, field.name, column)
    return batch


def _hub(source: HubSource, root: Path) -> Iterator[dict[str, Any]]:
    import datasets.exceptions  # two seconds, and only this kind of source needs it

    folder = root / source.dataset
    try:
        stream = datasets.load_dataset(
            str(folder) if folder.is_dir() else source.dataset,
            source.subset,
            split=source.rows,
            revision=source.revision,
            streaming=True,
        ).select_columns(used_columns(source.fields))
        values = {name: kind for name, kind in (stream.features or {}).items() if isinstance(kind, datasets.Value)}
        narrow = {name: np.dtype(kind.dtype).type for name, kind in values.items() if kind.dtype in _NARROW}
        for row in stream:
            floats = {name: row[name] for name in narrow if row[name] is not None and not row[name].is_integer()}
            yield row | {name: float(str(narrow[name](value))) for name, value in floats.items()}  # as `_shortest`
    except StopIteration as error:  # how `datasets` says that the first file is empty
        raise InputError(f"curation.sources.{source.name}.dataset: {source.dataset}: has no rows") from error
    except (FileNotFoundError, RuntimeError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        # RuntimeError: the folder holds a loading script
        raise InputError(f"curation.sources.{source.name}.dataset: {source.dataset}: {error}") from error


def _gym(source: GymSource, seed: int) -> Iterable[dict[str, Any]]:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise InputError(
            f"curation.sources.{source.name}: kind reasoning_gym needs `pip install r1flow[reasoning-gym]`"
        ) from error
    try:
        return reasoning_gym.create_dataset(source.dataset, size=source.problems, seed=seed, **source.options)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"curation.sources.{source.name}.dataset: {source.dataset}: {error}") from error
