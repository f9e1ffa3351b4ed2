"""Which models a run has, and what each is compared with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

STUDENTS = "distillation"
JUDGE = "preference"  # its model writes nothing
ORDER = ("general_rl", STUDENTS, "general_sft", "reasoning_rl", "cold_start", "base")
"""The recipe's final model first, as its figures head the tables; then its students, then the way that led to it."""

REFERENCES: Mapping[str, tuple[str, ...]] = {
    "general_rl": ("general_sft",),
    "general_sft": ("reasoning_rl", "base"),  # trained from the base again, but on what reasoning_rl has written
    "reasoning_rl": ("cold_start", "base"),  # R1-Zero starts from the base
    "cold_start": ("base",),
}
"""What a stage's model is compared with; the first one is that of its floor."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the run."""

    name: str  # its stage, or distillation/STUDENT
    folder: Path
    references: tuple[str, ...]  # those of its references that the run has, the floor's first


def find_models(root: Path, dependencies: Iterable[str], students: Iterable[str]) -> list[Entry]:
    """The models that a stage's dependencies name, in the order of the tables.

    `artifacts/STAGE/model` is one, and with `artifacts/distillation` so is the `model` there of each of the `students`:
    params may have had others before, whose folders stay. A stage that is not in `ORDER` comes last, compared with
    nothing.
    """
    folders: dict[str, Path] = {}
    for dependency in dependencies:
        match Path(dependency).parts:
            case ("artifacts", stage, "model") if stage != JUDGE:
                folders[stage] = root / dependency
            case ("artifacts", folder) if folder == STUDENTS:
                found = {student: root / dependency / student / "model" for student in students}
                folders |= {f"{STUDENTS}/{student}": model for student, model in found.items() if model.is_dir()}
    names = sorted(folders, key=_place)
    teacher = next((name for name in names if not is_student(name)), None)
    entries = []
    for name in names:
        wanted = (teacher,) if is_student(name) else REFERENCES.get(name, ())
        references = tuple(reference for reference in wanted if reference in folders)
        entries.append(Entry(name, folders[name], references))
    return entries


def _place(name: str) -> tuple[int, str]:
    stage = name.split("/")[0]
    return ORDER.index(stage) if stage in ORDER else len(ORDER), name


def is_student(name: str) -> bool:
    return name.startswith(f"{STUDENTS}/")


def final(models: list[Entry]) -> Entry:
    """The recipe's newest model: what the students learn from and what is compared with the champion."""
    return next(entry for entry in models if not is_student(entry.name))
