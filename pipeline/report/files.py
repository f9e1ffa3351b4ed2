"""Reading what stages have written, as far as it is there."""

import json
from pathlib import Path
from typing import Any


def folder(root: Path, stage: str) -> Path:
    """Where a stage's outputs lie."""
    return root / "artifacts" / stage.replace("@", "/")


def read_metrics(root: Path, stage: str) -> dict[str, Any]:
    """A stage's figures in their order; empty where there are none yet."""
    path = folder(root, stage) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
