"""The environment of a flow without a server, and with the user's own."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from flows.local import environment, shared


def test_everything_of_prefect_lies_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    assert environment(tmp_path)["PREFECT_HOME"] == str(tmp_path / "runs" / "prefect")
    assert (tmp_path / "runs" / "prefect").is_dir()


def test_what_the_user_has_set_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    found = environment(tmp_path)
    assert (found["PREFECT_HOME"], found["PREFECT_LOGGING_LEVEL"]) == (str(tmp_path / "mine"), "DEBUG")


def test_a_server_of_the_users_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    found = environment(tmp_path)
    assert {name for name in found if os.environ.get(name) != found[name]} == {"PATH"}
    assert not (tmp_path / "runs").exists()


def test_python_is_the_one_that_runs_this(tmp_path: Path) -> None:
    found = shutil.which("python", path=environment(tmp_path)["PATH"])
    assert found is not None
    assert Path(found).parent == Path(sys.executable).parent


def test_stages_beside_each_other_share_the_cores_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert shared(0) == {}
    assert [shared(others)["OMP_NUM_THREADS"] for others in (1, 2, 20)] == ["4", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert shared(1)["OMP_NUM_THREADS"] == "3"
