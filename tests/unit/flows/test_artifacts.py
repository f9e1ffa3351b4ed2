"""What is written for a reader on Prefect's pages, and that it can do no harm."""

from typing import Any

import pytest

from flows import artifacts
from flows.report import Outcome


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    for kind in ("table", "markdown"):
        monkeypatch.setattr(artifacts, f"create_{kind}_artifact", lambda **given: made.append(given))
    return made


def test_stages_and_their_times(written: list[dict[str, Any]]) -> None:
    artifacts.stages([Outcome("base", "ran", 62.0), Outcome("cold_start", "not reached")])
    assert written[0]["key"] == "recipe"
    assert [row["state"] for row in written[0]["table"]] == ["ran", "not reached"]


def test_a_note_on_the_first_set_and_on_a_later_one(written: list[dict[str, Any]]) -> None:
    first = {
        "problems": 1200,
        "new": 1200,
        "mean_prompt_chars": 8.0,
        "last_mean_prompt_chars": None,
        "drift": {},
        "tasks": [{"task": "sum", "share": 1.0, "last_share": None}],
    }
    artifacts.data(first)
    drift = {"length_drift": 0.25, "task_drift": 0.2}
    tasks = [{"task": "sum", "share": 0.8, "last_share": 1.0}]
    artifacts.data({**first, "new": 200, "last_mean_prompt_chars": 6.4, "drift": drift, "tasks": tasks})
    assert "No set was accepted before this one." in written[0]["markdown"]
    assert "drift 25.0 %" in written[1]["markdown"]
    assert "| sum | 80.0 % | 100.0 % |" in written[1]["markdown"]


def test_a_champion_that_holds_and_one_that_does_not(written: list[dict[str, Any]]) -> None:
    figures = {"pass_at_1": 0.8, "pass_at_1_low": 0.7, "pass_at_1_high": 0.9, "registered": 0.82, "floor": 0.77}
    counts = {"problems": 400.0, "version": 3.0}
    artifacts.standing({**figures, **counts}, "r1flow-m")
    artifacts.standing({**figures, **counts, "floor": 0.81}, "r1flow-m")
    assert [made["table"][0]["verdict"] for made in written] == ["holds", "below its floor"]


def test_a_server_that_is_away_is_no_harm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(**given: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(artifacts, "create_markdown_artifact", refuse)
    monkeypatch.setattr(artifacts, "create_progress_artifact", refuse)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    artifacts.note("x", "text", "what")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    artifacts.note("x", "text", "what")
    artifacts.Progress("stages").show(1, 2)
    assert capsys.readouterr().out == 'no artifact: "nobody there"\n' * 2


def test_keys_are_such_as_prefect_takes() -> None:
    assert artifacts.key("figures", "distillation@on_policy") == "figures-distillation-on-policy"
