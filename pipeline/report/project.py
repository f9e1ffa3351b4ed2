"""The stages of a project with what has become of them, and where data and models come from."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cost import Cost, read_cost
from pipeline.job import artifacts, read_stages, read_yaml
from pipeline.state import State, ending, read_state

LOCK_FILE = "dvc.lock"


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml."""

    name: str  # `group@member` for one of a group
    deps: tuple[str, ...]  # paths in the project
    outs: tuple[str, ...]
    needs: tuple[str, ...]  # the stages whose outputs it reads
    depth: int  # length of the longest way to it
    state: State | None
    metrics: dict[str, float]  # as in metrics.json, in its order
    cost: Cost | None

    @property
    def model(self) -> str:
        """What evaluation calls the model of this stage: `distillation/small` for distillation@small."""
        return self.name.replace("@", "/")

    @property
    def ending(self) -> str:
        """How its last attempt ended; "not run" where there was none."""
        return "not run" if self.state is None else ending(self.state)


def read_project(root: Path) -> list[Stage]:
    """The stages, each after those that it needs and otherwise as dvc.yaml lists them."""
    definitions = read_stages(root)
    writers = {out: name for name, definition in definitions.items() for out in _outs(definition)}
    needs = {
        name: tuple(dict.fromkeys(_writers(writers, definition.get("deps", []), name)))
        for name, definition in definitions.items()
    }
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = 1 + max((depth(needed) for needed in needs[name]), default=-1)
        return depths[name]

    listed = list(definitions)
    return [
        Stage(
            name=name,
            deps=tuple(definitions[name].get("deps", [])),
            outs=tuple(_outs(definitions[name])),
            needs=needs[name],
            depth=depth(name),
            state=read_state(root, name),
            metrics=_metrics(root, name),
            cost=read_cost(root, name),
        )
        for name in sorted(listed, key=lambda name: (depth(name), listed.index(name)))
    ]


def parents(stages: list[Stage], models: set[str]) -> dict[str, str]:
    """Model → the one among `models` that it was made from: the last one of those that its stage reads."""
    found = {}
    for stage in stages:
        read = [other.model for other in stages if other.name in stage.needs and other.model in models]
        if stage.model in models and read:
            found[stage.model] = read[-1]
    return found


def lineage(root: Path, stages: list[Stage]) -> list[dict[str, Any]]:
    """Of each stage in dvc.lock: digests of what it read from other stages and of what it wrote, by DVC."""
    if not (root / LOCK_FILE).is_file():
        return []
    locked = read_yaml(root / LOCK_FILE).get("stages", {})
    rows = []
    for stage in stages:
        entry = locked.get(stage.name, {})
        reads = [one for one in entry.get("deps", []) if one["path"].startswith("artifacts/")]
        rows.append(
            {
                "stage": stage.name,
                "key": stage.state.key if stage.state else "",
                "reads": [[one["path"], one.get("md5", "")] for one in reads],
                "writes": [[one["path"], one.get("md5", "")] for one in entry.get("outs", [])],
            }
        )
    return [row for row in rows if row["writes"]]


def commit(root: Path) -> str:
    """The commit that is checked out, with "+" where tracked files differ from it; empty outside a repository."""
    if shutil.which("git") is None:
        return ""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{LOCK_FILE}")
    return "" if head is None else head + ("+" if changed else "")


def _metrics(root: Path, stage: str) -> dict[str, Any]:
    """A stage's figures in their order; empty where there are none yet."""
    path = artifacts(root, stage) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _outs(definition: dict[str, Any]) -> list[str]:
    """Paths that a stage writes; an output with options is a mapping of one path."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in definition.get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def _writers(writers: dict[str, str], deps: list[str], reader: str) -> list[str]:
    """The stages that write `deps`, or what lies in them."""
    return [
        writer
        for dep in deps
        for out, writer in writers.items()
        if writer != reader and (out == dep or out.startswith(f"{dep}/") or dep.startswith(f"{out}/"))
    ]
