"""What of a stage travels between machines beside git and DVC's remote: small, and nothing but names and digests.

A worker starts from a commit. To run a stage as DVC would run it elsewhere it has to know what the stages before it
have made: their entries in dvc.lock. To hold a budget, and to draw the page, one has to know what they have cost:
their states and accounts. A `Record` is these three of one stage. It goes to a worker as a parameter of the flow run
and comes back as an artifact of that run, as results of flow runs are files on the machine that ran them.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from dvc.exceptions import DvcException
from dvc.utils.serialize import dump_yaml, load_yaml
from prefect.artifacts import MarkdownArtifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

from flows.artifacts import key
from flows.report import Outcome
from pipeline.cost import account_file
from pipeline.errors import InputError
from pipeline.files import atomic_file, write_json
from pipeline.job import PARAMS_FILE, read_yaml
from pipeline.params import load_params
from pipeline.state import read_state, state_file

LOCK_FILE = "dvc.lock"
SCHEMA = "2.0"  # of dvc.lock
REPORT = "stage-report"  # with the stage, an artifact's key
OPENING, CLOSING = "```json\n", "\n```"


@dataclass(frozen=True)
class Record:
    """What a stage leaves behind, beside its outputs.

    The lock entry is empty where it failed; state and account are None where its outputs came from the cache.
    """

    lock: dict[str, Any]
    state: dict[str, Any] | None
    account: dict[str, Any] | None


@dataclass(frozen=True)
class Report:
    """What a worker says at the end of a stage. `exit_code` is the stage's own."""

    outcome: Outcome
    exit_code: int
    reason: str
    record: Record


def read_lock(root: Path) -> dict[str, Any]:
    """Stage → its entry in the project's dvc.lock, as DVC reads it. Raises InputError where it cannot."""
    path = root / LOCK_FILE
    try:
        return (load_yaml(str(path)) or {}).get("stages", {}) if path.is_file() else {}
    except DvcException as error:
        raise InputError(f"{path}: {error}") from error


def write_lock(root: Path, entries: Mapping[str, Any]) -> None:
    """Write dvc.lock, as DVC does, in one atomic step, unless it says the same already: that takes a while."""
    if list(read_lock(root).items()) == list(entries.items()):
        return
    with atomic_file(root / LOCK_FILE) as temporary:
        dump_yaml(str(temporary), {"schema": SCHEMA, "stages": dict(entries)})


def sort_lock(root: Path, order: Sequence[str]) -> None:
    """Put dvc.lock's entries in this order, whichever stage ended first: so `dvc repro` writes them."""
    entries = read_lock(root)
    write_lock(root, {stage: entries[stage] for stage in order if stage in entries} | entries)


def copy_lock(root: Path, folder: Path) -> None:
    """Keep the project's dvc.lock, where it has one by now, in another folder too, in one atomic step."""
    if (root / LOCK_FILE).is_file():
        with atomic_file(folder / LOCK_FILE) as temporary:
            shutil.copyfile(root / LOCK_FILE, temporary)


def read_record(root: Path, stage: str, outcome: Outcome) -> Record:
    """The record of a stage as it came out in the project at `root`."""
    ran = outcome.state != "fresh"
    state = read_state(root, stage) if ran else None
    account = account_file(root, stage, state.key) if state is not None else None
    return Record(
        {} if outcome.state == "failed" else read_lock(root)[stage],
        None if state is None else asdict(state),
        json.loads(account.read_text(encoding="utf-8")) if account is not None and account.is_file() else None,
    )


def place(root: Path, records: Mapping[str, Record]) -> None:
    """Make the project at `root` know what was done elsewhere. In dvc.lock they come first, in this order."""
    done = {stage: record.lock for stage, record in records.items() if record.lock}
    write_lock(root, {**done, **{stage: entry for stage, entry in read_lock(root).items() if stage not in done}})
    for stage, record in records.items():
        if record.state is not None:
            write_json(state_file(root, stage), record.state)
            if record.account is not None:
                write_json(account_file(root, stage, record.state["key"]), record.account)


def outputs_read(deps: Iterable[str], records: Mapping[str, Record]) -> list[str]:
    """The outputs of the recorded stages that lie at, below or above one of `deps`."""
    outs = [out["path"] for record in records.values() for out in record.lock.get("outs", [])]
    wanted = [Path(dependency) for dependency in deps]
    return [out for out in outs if any(_overlap(Path(out), dependency) for dependency in wanted)]


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def override(root: Path, values: Mapping[str, Any]) -> None:
    """Set values in the project's params.yaml, by their dotted names, and check the whole. Raises InputError."""
    path = root / PARAMS_FILE
    if values:
        params = json.loads(json.dumps(read_yaml(path)))  # what YAML's anchors make one value is two from now on
        for name, value in values.items():
            *sections, key = name.split(".")
            section = params
            for part in sections:
                section = section.setdefault(part, {}) if isinstance(section, dict) else None
            if not isinstance(section, dict):
                raise InputError(f"overrides: {name}: {value!r}: lies in no section of {path.name}")
            section[key] = value
        with atomic_file(path) as temporary:
            dump_yaml(str(temporary), params)
    load_params(path)


def tell(report: Report) -> None:
    """Keep the report as an artifact of the present flow run, where a person may read it too."""
    stage, text = report.outcome.stage, json.dumps(asdict(report), indent=1, ensure_ascii=False)
    name = f"{stage}: how it came out, for who has sent it"
    MarkdownArtifact(key=key(REPORT, stage), markdown=f"{OPENING}{text}{CLOSING}", description=name).create()


def hear(client: SyncPrefectClient, run: UUID, stage: str) -> Report | None:
    """What a flow run has reported of a stage; None where it did not come to that."""
    of_stage = ArtifactFilterKey(any_=[key(REPORT, stage)])
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]), key=of_stage)
    for found in client.read_artifacts(artifact_filter=of_run):
        told = json.loads(str(found.data).removeprefix(OPENING).removesuffix(CLOSING))
        if told["outcome"]["stage"] == stage:  # keys of names that differ in signs alone are equal
            return Report(Outcome(**told["outcome"]), told["exit_code"], told["reason"], Record(**told["record"]))
    return None
