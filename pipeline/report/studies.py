"""What a project's studies have found: comparisons that are no part of the recipe, with runs of their own."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.studies.definition import STUDIES, load_study, results_folder
from pipeline.studies.tables import rows


@dataclass(frozen=True)
class Arm:
    """What the picture shows of one arm: its pass@1 over the problems of all seeds, with the 95 % interval."""

    name: str
    pass_at_1: float
    low: float
    high: float


@dataclass(frozen=True)
class Found:
    name: str
    question: str
    when: str  # ended; "" where it has not run here
    asked: str  # how many problems, samples and seeds
    control: str
    arms: list[Arm]
    table: list[dict[str, str]]  # an arm a row


def read_studies(root: Path) -> list[Found]:
    """Every study that the project defines, those with results first. Raises InputError where a definition is wrong."""
    found = [_read(root, path.stem) for path in sorted((root / STUDIES).glob("*.yaml"))]
    return sorted(found, key=lambda study: not study.arms)


def pictures(studies: list[Found]) -> dict[str, list[dict[str, Any]]]:
    return {study.name: [asdict(arm) for arm in study.arms] for study in studies if study.arms}


def _read(root: Path, name: str) -> Found:
    file = results_folder(root, name) / "results.json"
    if not file.is_file():
        return Found(name, load_study(root, name).question, "", "", "", [], [])
    results = json.loads(file.read_text(encoding="utf-8"))
    arms = [
        Arm(arm, pooled["pass_at_1"], pooled["pass_at_1_low"], pooled["pass_at_1_high"])
        for arm, pooled in ((arm, one["pooled"]) for arm, one in results["arms"].items())
    ]
    return Found(
        name=name,
        question=results["question"],
        when=datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M"),
        asked=f"{results['problems']} held-out problems × {results['samples']} samples, "
        f"seed{'s' * (len(results['seeds']) > 1)} {', '.join(map(str, results['seeds']))}",
        control=results["control"],
        arms=arms,
        table=rows(results),
    )
