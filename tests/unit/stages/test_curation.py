"""The curation stage: artifacts appear only after the gates have passed."""

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


def test_drift_is_measured_against_the_last_set_of_the_same_sources(tmp_path: Path) -> None:
    curation.run(params(), job(tmp_path))
    others = {"families": {"count": 1.0}}
    curation.run(params(others | {"name": "others"}), job(tmp_path))
    with pytest.raises(GateFailedError, match=r"drift: .*task_drift"):
        curation.run(params(others), job(tmp_path))
