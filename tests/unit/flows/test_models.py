"""The table of evaluated models."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from flows.models import models_table
from pipeline.errors import InputError

METRICS = {
    f"{model}.{name}": value
    for model, accuracy in (("general_rl", 0.9), ("distillation/small", 0.85))
    for name, value in {
        "pass_at_1": accuracy,
        "pass_at_1_low": accuracy - 0.03,
        "pass_at_1_high": accuracy + 0.03,
        "parameters": 7_393_600,
        "activated_parameters": 414_016,
        "sum.pass_at_1": 1.0,
    }.items()
}


def _text(root: Path) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(models_table(root))
    return capture.get()


def test_every_model_stands_with_its_figures(tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "evaluation").mkdir(parents=True)
    (tmp_path / "artifacts" / "evaluation" / "metrics.json").write_text(json.dumps(METRICS))
    rows = [line for line in _text(tmp_path).splitlines() if "414 k" in line]
    assert len(rows) == 2
    assert "distillation/small" in rows[1]
    for part in ("general_rl", "90.0 %", "87.0 % to", "414 k", "7.39 M"):
        assert part in rows[0]
    assert "tokens_per_s" not in _text(tmp_path)
    (tmp_path / "runs" / "evaluation").mkdir(parents=True)
    (tmp_path / "runs" / "evaluation" / "speed.json").write_text('{"distillation/small": {"tokens_per_s": 31250.4}}')
    assert "31,250" in _text(tmp_path)


def test_without_an_evaluation_there_is_nothing_to_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model was evaluated yet"):
        models_table(tmp_path)
