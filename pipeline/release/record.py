"""What a release says of itself: checksums.json beside its files, and release.json over all releases of a run.

A release's digest is the SHA-256 of its checksums.json, which names every other file of the folder. So whoever has the
digest can tell with `sha256sum` alone whether a copy is whole. release.json is a function of the stage's inputs: it
holds no time, no host and no commit; those are added where a release is registered.

This module reads and writes files only and knows no model, so flows and the registry may use it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.files import digest, write_json
from pipeline.job import artifacts

FORMAT = 1
STAGE = "deployment"
RECORD = "release.json"
CHECKSUMS = "checksums.json"
CARD = "README.md"
REGISTRATION = "registration"  # its folder under runs/

Kind = Literal["teacher", "student", "variant"]
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Release:
    """One release as release.json has it."""

    name: str  # its folder; a student's key, general_rl for the teacher
    digest: str  # of its checksums.json
    kind: Kind
    of: str | None  # a variant: the release that it was made from
    model: str  # what the evaluation calls it
    trained: dict[str, str]  # path in the project → SHA-256, of the weights that it was exported from
    files: dict[str, str]  # name → SHA-256
    parameters: int
    activated_parameters: int
    evaluation: dict[str, Figures]  # figure → mean, low, high: the 95 % interval over problems
    parity: Figures  # pipeline.release.parity


@dataclass(frozen=True, slots=True)
class Record:
    """The releases of a run and what all of them come from."""

    releases: tuple[Release, ...]
    upstream: dict[str, dict[str, str]]  # stage → path of an output in the project → SHA-256
    verifiers: dict[str, int]  # whose verdicts the evaluation rests on → version

    def write(self, folder: Path) -> None:
        releases = {
            one.name: {key: value for key, value in asdict(one).items() if key != "name"} for one in self.releases
        }
        content = {"format": FORMAT, "releases": releases, "upstream": self.upstream, "verifiers": self.verifiers}
        write_json(folder / RECORD, content, sort=False)


def read_record(root: Path) -> Record:
    """The releases of the project at `root`.

    Raises InputError where there are none, the file is cut off or another version wrote it.
    """
    path = artifacts(root, STAGE) / RECORD
    if not path.is_file():
        raise InputError(f"{path}: missing; run stage {STAGE} first (`r1flow run`)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is no JSON: {error}; run stage {STAGE} again") from error
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: format {content.get('format')!r}: must be {FORMAT}; run stage {STAGE} again")
    releases = tuple(Release(name=name, **fields) for name, fields in content["releases"].items())
    return Record(releases, content["upstream"], content["verifiers"])


def release_folder(root: Path, name: str) -> Path:
    return artifacts(root, STAGE) / name


def registered_file(root: Path) -> Path:
    """Where the last registration has noted the versions: a list of `pipeline.tracking.Registered`."""
    return root / "runs" / REGISTRATION / "versions.json"


def write_checksums(folder: Path) -> tuple[str, dict[str, str]]:
    """Write checksums.json over a finished release; returns the release's digest, and name → SHA-256 of its files."""
    names = sorted(entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file())
    files = {name: digest(folder / name) for name in names if name != CHECKSUMS}
    write_json(folder / CHECKSUMS, files)
    return digest(folder / CHECKSUMS), files


def verify_checksums(folder: Path, expected: str) -> None:
    """Raises InputError unless the folder holds exactly the files of the release whose digest is `expected`."""
    path = folder / CHECKSUMS
    if not path.is_file():
        raise InputError(f"{path}: missing: a release must have it")
    if (found := digest(path)) != expected:
        raise InputError(f"{path}: has SHA-256 {found}: must be the release's digest {expected}")
    files: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    present = {entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file()} - {CHECKSUMS}
    if odd := sorted(present ^ set(files)):
        raise InputError(
            f"{folder}: {odd[0]}: {'not named in' if odd[0] in present else 'missing, named in'} {CHECKSUMS}"
        )
    for name, checksum in files.items():
        if (found := digest(folder / name)) != checksum:
            raise InputError(f"{folder / name}: has SHA-256 {found}: must be {checksum} by {CHECKSUMS}")
