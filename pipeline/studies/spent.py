"""What an arm of a study has cost: the accounts (pipeline/cost.py) of all stages that lead to its model.

An arm's workspace has an account only of what ran there. A stage that came out of DVC's cache has run elsewhere: in
another arm's workspace or in the project itself. Equal work has an equal key, by which its account is found.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.cost import Cost, account
from pipeline.job import identity

WAY = Path("runs") / "way.json"  # in a workspace: the stages that lead to the arm's model, in order
FIGURES = ("seconds", "money", "trained_tokens", "generated_tokens", "flops")


def way(folder: Path) -> list[str]:
    """The stages that lead to the model of the workspace `folder`, its own last."""
    stages: list[str] = json.loads((folder / WAY).read_text(encoding="utf-8"))
    return stages


def spent(root: Path, folder: Path) -> dict[str, Cost | None]:
    """Stage → its account, for all stages of the arm's way; None where nobody here has one."""
    places = [folder, root, *sorted((root / "runs" / "studies").glob("*/*-seed-*"))]
    return {stage: _found(places, stage, identity(folder, stage).key) for stage in way(folder)}


def _found(places: Iterable[Path], stage: str, key: str) -> Cost | None:
    """Of several accounts of the same work the one that has counted most: one that was broken off has counted less."""
    accounts = [found for place in places if (found := account(place, stage, key)) is not None]
    return max(accounts, key=lambda cost: cost.work.tokens, default=None)


def total(costs: Iterable[Cost | None]) -> dict[str, float] | None:
    """Seconds, money, tokens and operations of several stages together; None where one of them is not known."""
    sums = dict.fromkeys(FIGURES, 0.0)
    for cost in costs:
        if cost is None:
            return None
        figures = cost.figures()
        sums = {name: value + figures[name] for name, value in sums.items()}
    return sums
