"""Who is asked at the end of a recipe. How a person answers is in tests/integration/test_deployments.py."""

import uuid
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prefect.client.schemas.objects import FlowRun

from flows import approval
from pipeline.tracking import Version
from tests.project import PARAMS


class Registry:
    """Versions by alias, in place of MLflow's."""

    versions: ClassVar[dict[str, int]] = {}

    def __init__(self, *given: object) -> None: ...

    def _version(self, alias: str) -> Version | None:
        number = self.versions.get(alias)
        return None if number is None else Version("r1flow-general_rl", number, f"{number}" * 64, "", {})

    def candidate(self, model: str) -> Version | None:
        return self._version("candidate")

    def champion(self, model: str) -> Version | None:
        return self._version("champion")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []

    def run(name: str, **options: Any) -> FlowRun:
        runs.append({"deployment": name, **options})
        return FlowRun(flow_id=uuid.uuid4(), name="quick-fox")

    monkeypatch.setattr(approval, "run_deployment", run)
    monkeypatch.setattr(approval, "Aliases", Registry)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return runs


def ask(
    root: Path, monkeypatch: pytest.MonkeyPatch, options: str = "", uri: str = "http://mlflow:5000", **versions: int
) -> str:
    monkeypatch.setenv("R1FLOW_PROJECT", str(root))
    monkeypatch.setattr(Registry, "versions", versions)
    (root / ".git").mkdir(exist_ok=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    tracking = f'tracking: {{uri: "{uri}"}}\n' if uri else ""
    (root / "params.yaml").write_text(PARAMS + tracking + (f"operation: {options}\n" if options else ""))
    return approval.ask(root)


def test_a_run_asks_once_for_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    options = "{approval: {by: run, hours: 2}}"
    said = ask(tmp_path, monkeypatch, options, champion=1, candidate=2)
    assert said == "r1flow-general_rl version 2 is a candidate: run quick-fox waits up to 2 h for approval"
    ask(tmp_path, monkeypatch, options, champion=1, candidate=2)
    assert [run["parameters"] for run in started] == [{"version": 2, "hours": 2.0}] * 2
    assert len({run["idempotency_key"] for run in started}) == 1  # by which the server makes one run of both
    ask(tmp_path, monkeypatch, options, champion=1, candidate=3)
    assert len({run["idempotency_key"] for run in started}) == 2


def test_nobody_is_asked_by_default_nor_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    assert "the alias `champion` decides" in ask(tmp_path, monkeypatch, champion=1, candidate=2)
    by_run = "{approval: {by: run}}"
    assert "nothing to approve" in ask(tmp_path, monkeypatch, by_run, champion=2, candidate=2)
    assert "nothing to approve" in ask(tmp_path, monkeypatch, by_run)
    assert "tracking.uri is to name a server" in ask(tmp_path, monkeypatch, by_run, uri="", candidate=2)
    assert started == []
