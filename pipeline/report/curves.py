"""What the stages logged over their steps, thinned out to what a screen can show."""

import math
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import InputError
from pipeline.params import Tracking
from pipeline.report.project import Stage
from pipeline.tracking import read_run

POINTS = 240  # of a curve
# What the page shows at once, in this order; the others fold away.
FIRST = ("loss", "reward", "right", "length", "entropy", "kl", "preference", "gradient_norm", "truncated", "imbalance")
EXPERTS = "imbalance"  # of their load; 0 throughout in a dense model, which has none
CLOCKS = ("_s", "_per_s")  # names of times and rates end so: they are in the costs

Curve = list[tuple[float, float]]


def read_curves(tracking: Tracking, root: Path, stages: list[Stage]) -> dict[str, dict[str, Curve]]:
    """Stage → figure → points (step, value), of each stage's newest run that has any."""
    curves = {}
    for stage in stages:
        if stage.state is None or (not (root / "runs" / "mlflow").exists() and tracking.uri is None):
            continue
        try:
            recorded = read_run(tracking, root, stage.state.mlflow_run or stage.name)
        except (InputError, ConnectionError):  # it has not come to its first figure yet, or the store refuses
            continue
        found = _curves(recorded.steps)
        if found:
            curves[stage.name] = found
    return curves


def _curves(steps: tuple[tuple[int, Mapping[str, float]], ...]) -> dict[str, Curve]:
    """A step that came again after a return to a checkpoint counts as it was the last time."""
    values: dict[str, dict[int, float]] = {}
    for step, figures in steps:
        for name, value in figures.items():
            if math.isfinite(value) and not name.endswith(CLOCKS):
                values.setdefault(name, {})[step] = value
    if not any(values.get(EXPERTS, {}).values()):
        values.pop(EXPERTS, None)
    names = sorted((name for name in values if len(values[name]) > 1), key=_place)
    return {name: thinned(sorted(values[name].items())) for name in names}


def _place(name: str) -> tuple[int, str]:
    return (FIRST.index(name), name) if name in FIRST else (len(FIRST), name)


def thinned(points: list[tuple[int, float]], most: int = POINTS) -> Curve:
    """At most `most` points: means over neighbours of like number."""
    size = math.ceil(len(points) / most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(step for step, _ in part) / len(part), float(f"{sum(value for _, value in part) / len(part):.5g}"))
        for part in parts
    ]
