"""Where a project's plan lies; read by the page and the flow without anything that measures."""

import json
from pathlib import Path
from typing import Any

NAME = "plan"


def plan_path(root: Path) -> Path:
    return root / "runs" / NAME / "plan.json"


def read_plan(root: Path) -> dict[str, Any] | None:
    """The last plan that was made; None before the first one."""
    path = plan_path(root)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
