"""The tables that a person reads."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.report import Outcome, figures, run_table, status_table
from pipeline.state import State


def text_of(table: Table, width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def write_metrics(root: Path, stage: str, metrics: dict[str, float]) -> None:
    (root / "artifacts" / stage).mkdir(parents=True)
    (root / "artifacts" / stage / "metrics.json").write_text(json.dumps(metrics))


def test_first_figure_comes_with_its_interval(tmp_path: Path) -> None:
    write_metrics(
        tmp_path, "evaluation", {"pass_at_1": 0.81, "pass_at_1_low": 0.7, "pass_at_1_high": 0.9, "tokens": 41_250}
    )
    assert figures(tmp_path, "evaluation", 1) == "pass_at_1 0.81 (0.7 to 0.9)"
    assert figures(tmp_path, "evaluation", 3) == "pass_at_1 0.81 (0.7 to 0.9)\ntokens 41,250"
    assert figures(tmp_path, "base", 1) == ""


def test_run_table_shows_figures_only_of_stages_that_are_up_to_date(tmp_path: Path) -> None:
    write_metrics(tmp_path, "base", {"loss": 0.5})
    write_metrics(tmp_path, "cold_start", {"loss": 0.25})
    text = text_of(run_table(tmp_path, [Outcome("base", "ran", 61), Outcome("cold_start", "failed", 2)]))
    assert "loss 0.5" in text
    assert "1 min 1 s" in text
    assert "0.25" not in text


def test_a_member_of_a_group_has_a_folder_in_its_groups(tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "distillation" / "small").mkdir(parents=True)
    (tmp_path / "artifacts" / "distillation" / "small" / "metrics.json").write_text('{"loss": 0.125}')
    text = text_of(run_table(tmp_path, [Outcome("distillation@small", "ran", 9)]))
    for part in ("distillation@small", "loss 0.125", "artifacts/distillation/small"):
        assert part in text


def state(pid: int, *, ago: float) -> State:
    return State("running", pid, (datetime.now(UTC) - timedelta(seconds=ago)).isoformat())


def test_an_attempt_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    no_process = 2**22 + 1  # above the largest id that Linux gives
    states = {
        "gone": state(no_process, ago=9),
        "alive": state(os.getpid(), ago=0),
        "reused": state(os.getpid(), ago=1e6),
    }
    rows = text_of(status_table(tmp_path, dict.fromkeys(states, False), dict(states), 120)).splitlines()
    found = {name: "killed" if "killed" in row else "running" for name in states for row in rows if name in row}
    assert found == {"gone": "killed", "alive": "running", "reused": "killed"}


def test_status_names_stages_without_an_attempt(tmp_path: Path) -> None:
    assert "stale" in text_of(status_table(tmp_path, {"base": False}, {"base": None}, 120))


def test_on_a_narrow_terminal_status_still_says_what_is_stale_and_how_it_fared(tmp_path: Path) -> None:
    write_metrics(tmp_path, "evaluation", {"pass_at_1": 0.81})
    done = {"evaluation": State("finished", 1, datetime.now(UTC).isoformat(), seconds=5.0), "distillation@medium": None}
    text = text_of(status_table(tmp_path, dict.fromkeys(done, False), done, 80), width=80)
    for part in ("distillation@medium", "stale", "finished", "pass_at_1 0.81"):
        assert part in text
    assert "cost" not in text
