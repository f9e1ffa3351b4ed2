"""The models that an evaluation has measured, as a table: how large, how good, how fast."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.report import table
from pipeline.errors import InputError
from pipeline.figures import percent, scaled


def models_table(root: Path) -> Table:
    """Model, pass@1 with its interval, activated and total parameters, speed of evaluation.

    Raises InputError where nothing was evaluated yet.
    """
    metrics = _read(root / "artifacts" / "evaluation" / "metrics.json")
    if metrics is None:
        raise InputError(f"{root / 'artifacts'}: no model was evaluated yet; run `r1flow run`")
    speeds = _read(root / "runs" / "evaluation" / "speed.json") or {}  # of this machine; it may not have evaluated
    columns = ("model", "pass@1", "95 % interval", "activated", "parameters", "tokens/s")
    rows = table(*columns, broken=("95 % interval",))
    rows.caption = "each in artifacts/MODEL/model"
    for name in (key.removesuffix(".parameters") for key in metrics if key.endswith(".parameters")):
        speed = speeds.get(name, {}).get("tokens_per_s")
        rows.add_row(
            name,
            percent(metrics[f"{name}.pass_at_1"]),
            f"{percent(metrics[f'{name}.pass_at_1_low'])} to {percent(metrics[f'{name}.pass_at_1_high'])}",
            scaled(metrics[f"{name}.activated_parameters"]),
            scaled(metrics[f"{name}.parameters"]),
            "" if speed is None else f"{speed:,.0f}",
        )
    return rows


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
