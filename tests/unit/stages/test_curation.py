"""The curation stage: artifacts appear only after the gates have passed."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import GateFailedError
from pipeline.files import digest
from pipeline.job import Job
from pipeline.params import Params
from pipeline.stages import curation
from tests.unit.stages.toys import toy_params

pytestmark = pytest.mark.slow  # Great Expectations takes seconds to import

TABLES = {"problems.parquet", "traces.parquet", "pairs.parquet", "quarantine.parquet"}


def params(source: dict[str, Any] | None = None, **gates: Any) -> Params:
    families = {"sum": 0.6, "reverse": 0.4}
    generated = {"kind": "generated", "name": "made", "problems": 200, "families": families} | (source or {})
    return toy_params(curation={"sources": [generated], "gates": gates})


def job(root: Path) -> Job:
    return Job("curation", root, "key", lambda figures, step: None, lambda name, step, rows: None)


def test_accepted_set_becomes_the_artifacts(tmp_path: Path) -> None:
    metrics = curation.run(params(), job(tmp_path))
    assert metrics["problems"] == 200
    artifacts = tmp_path / "artifacts" / "curation"
    assert {path.name for path in artifacts.iterdir()} == TABLES | {"verdict.json"}
    first = digest(artifacts)
    assert curation.run(params(), job(tmp_path)) == metrics
    assert digest(artifacts) == first


def test_rejected_set_stays_out_of_the_artifacts(tmp_path: Path) -> None:
    with pytest.raises(GateFailedError, match="rejected"):
        curation.run(params(min_problems=201), job(tmp_path))
    assert not (tmp_path / "artifacts").exists()
    assert {path.name for path in (tmp_path / "runs" / "curation" / "rejected").iterdir()} == TABLES
    curation.run(params(), job(tmp_path))
    assert not (tmp_path / "runs" / "curation" / "rejected").exists()


def day(root: Path, tasks: dict[str, int], name: str = "days") -> Params:
    """Params of a file's problems, so many of each task."""
    file = root / "day.jsonl"
    rows = [
        {"prompt": f"{task} {number} + {number * number} = ?", "gold": str(number), "task": task}
        for task, count in tasks.items()
        for number in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "name": name, "path": str(file), "digest": digest(file), "task": "all"}
    gates = {"min_problems": 1, "max_quarantined": 1.0}
    fields = {"fields": {"task": "task"}, "verifier": "numeric"}
    return toy_params(curation={"sources": [source | fields], "gates": gates})


def test_drift_is_measured_against_the_last_set_of_the_same_sources(tmp_path: Path) -> None:
    curation.run(day(tmp_path, {"sum": 60, "product": 40}), job(tmp_path))
    curation.run(day(tmp_path, {"product": 100}, name="others"), job(tmp_path))
    with pytest.raises(GateFailedError, match=r"drift: .*task_drift"):
        curation.run(day(tmp_path, {"product": 100}), job(tmp_path))


def test_another_mix_that_params_ask_for_is_no_drift(tmp_path: Path) -> None:
    curation.run(params(), job(tmp_path))
    curation.run(params({"families": {"count": 1.0}}), job(tmp_path))
