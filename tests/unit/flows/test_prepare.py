"""Setting up makes the databases that a first run would otherwise wait for."""

import sqlite3
from pathlib import Path

import pytest

from flows import prepare


@pytest.mark.slow
def test_setting_up_makes_both_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_API_DATABASE_CONNECTION_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(prepare, "IMPORT_ALL", "")  # the tests import enough
    monkeypatch.chdir(tmp_path)
    assert prepare.main() == 0
    for database, table in (("prefect/prefect.db", "flow_run"), ("mlflow/mlflow.db", "runs")):
        with sqlite3.connect(tmp_path / "runs" / database) as connection:
            assert connection.execute(f"select count(*) from {table}").fetchone() == (0,)
