"""Checkpoints to resume from: `step-N/` folders that are whole or not there.

A folder is filled under another name, flushed and renamed (pipeline.files). Its list of SHA-256 digests is written
last and says that all else is there. On reading every file is verified; a broken folder is passed over with a warning,
and the one before it is taken. Two are kept.
Of several ranks each writes its share into files of its own in the same folder. They go on from it in any number.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pipeline.files import atomic_folder, digest, flush, write_json
from pipeline.params import Optimisation
from pipeline.training.engine import State
from pipeline.training.pieces import Tensors
from pipeline.world import gathered, led, world

KEPT = 2
DIGESTS = "digests.json"
PROGRESS = "progress.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run stands after `step` steps, and what its loop remembers."""

    step: int
    progress: dict[str, Any]  # JSON
    state: State


class Checkpoints:
    """The checkpoints of one piece of work in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, of which each rank has its share, then remove all but the newest two and what killed
        writers left. Those of later steps are broken ones, or the work would have gone on from them: they go too.
        """
        if not world().leads:
            self._fill(None, checkpoint)
            return
        for folder in (self._folder, self._folder.parent):  # the work's own, or that of the work it is a part of
            for notes in folder.glob("*.jsonl"):  # the figures of the steps before (pipeline/curves.py)
                flush(notes)
        with atomic_folder(self._folder / f"step-{checkpoint.step}") as temporary:
            write_json(temporary / PROGRESS, checkpoint.progress)
            digests = self._fill(temporary, checkpoint) | {PROGRESS: digest(temporary / PROGRESS)}
            write_json(temporary / DIGESTS, digests)
        kept = [step for step in self._steps() if step <= checkpoint.step][:KEPT]
        old = [self._folder / f"step-{step}" for step in self._steps() if step not in kept]
        for folder in [*old, *self._folder.glob(".step-*")]:
            shutil.rmtree(folder)

    def _fill(self, temporary: Path | None, checkpoint: Checkpoint) -> dict[str, str]:
        """Write this rank's files into the folder that the first rank names. Returns the digests of all files."""
        folder = gathered(temporary)[0]
        assert folder is not None
        own = {}
        for part, tensors in checkpoint.state.items():
            file = folder / (f"{part}.safetensors" if world().alone else f"{part}.{world().rank}.safetensors")
            save_file(dict(tensors), file)
            own[file.name] = digest(file)
        return {name: value for each in gathered(own) for name, value in each.items()}

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None. Its tensors are read as they are asked for, and lie on the CPU."""
        step = led(self._newest)()
        if step is None:
            return None
        folder = self._folder / f"step-{step}"
        parts: dict[str, list[Path]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            parts.setdefault(file.name.partition(".")[0], []).append(file)
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        return Checkpoint(step, progress, {part: Tensors(files) for part, files in parts.items()})

    def _newest(self) -> int | None:
        for step in self._steps():
            folder = self._folder / f"step-{step}"
            if fault := _fault(folder):
                logger.warning("checkpoint %s is broken (%s): taking the one before", folder, fault)
                continue
            return step
        return None

    def _steps(self) -> list[int]:
        """Steps that have a folder, newest first."""
        return sorted((int(folder.name.removeprefix("step-")) for folder in self._folder.glob("step-*")), reverse=True)


def until_checkpoint(options: Optimisation, step: int) -> int:
    """Steps from `step` on until the loop's next checkpoint, or until its end where that comes first."""
    return min(options.checkpoint_every - step % options.checkpoint_every, options.steps - step)


def _fault(folder: Path) -> str | None:
    """What keeps a folder from being a whole checkpoint."""
    if not (folder / DIGESTS).is_file():
        return f"no {DIGESTS}"
    try:
        expected = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    except ValueError:
        return f"{DIGESTS} is not JSON"
    for name, value in expected.items():
        if not (folder / name).is_file():
            return f"no {name}"
        if digest(folder / name) != value:
            return f"{name} does not have the digest it was written with"
    return None
