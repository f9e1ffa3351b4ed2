"""A day's set against the sets before it."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from pipeline.incoming.history import History
from pipeline.incoming.note import accepted_problems, compare
from pipeline.params import FileSource, GeneratedSource, Source
from pipeline.records import Problem, schema, write_table


def sources(*names: str) -> list[Source]:
    return [FileSource(kind="jsonl", name=name, path=f"{name}.jsonl", task="sum") for name in names]


def accept(root: Path, tasks: Sequence[str], prompt: str = "12345678") -> None:
    rows = [Problem(f"{n:04}", "s", task, prompt, "7", "numeric", "", None, "train") for n, task in enumerate(tasks)]
    write_table(pl.DataFrame(rows, schema=schema(Problem)), root / "artifacts" / "curation" / "problems.parquet")


@pytest.mark.parametrize("place", ["runs/accepted", "kept/here"])
def test_what_is_new_and_how_far_it_has_moved(tmp_path: Path, place: str) -> None:
    home, root = tmp_path / "home", tmp_path / "work"
    history = History(place, home, sources("b", "a"))
    accept(root, ["sum"] * 8)
    first = compare(root, history)
    assert (first.problems, first.new, first.last_mean_prompt_chars, first.drift) == (8, 8, None, {})
    assert first.tasks == [{"task": "sum", "share": 1.0, "last_share": None}]
    history.begin(accepted_problems(root)["id"])

    accept(root, ["sum"] * 8 + ["count"] * 2, prompt="1234567890")
    second = compare(root, History(place, home, sources("a", "b")))
    assert (second.problems, second.new) == (10, 2)
    assert second.digest != first.digest
    assert second.drift == {"length_drift": pytest.approx(0.25), "task_drift": pytest.approx(0.2)}
    assert {row["task"]: row["last_share"] for row in second.tasks} == {"sum": 1.0, "count": 0.0}
    third = compare(root, history)
    assert (third.new, third.digest) == (2, second.digest)  # still: no recipe was started on them
    assert third.drift == {"length_drift": 0.0, "task_drift": 0.0}


def test_other_sources_have_a_history_of_their_own(tmp_path: Path) -> None:
    accept(tmp_path, ["sum"])
    compare(tmp_path, History("kept", tmp_path, sources("a")))
    other = History("kept", tmp_path, sources("a", "c"))
    assert compare(tmp_path, other).last_mean_prompt_chars is None
    assert other.begun() == set()


def test_another_mix_of_generated_problems_is_another_set(tmp_path: Path) -> None:
    def made(count: int, **families: float) -> History:
        source = GeneratedSource(kind="generated", name="made", problems=count, families=families)
        return History("kept", tmp_path, [source])

    accept(tmp_path, ["sum"])
    compare(tmp_path, made(10, sum=1.0))
    assert compare(tmp_path, made(20, sum=1.0)).last_mean_prompt_chars == 8
    assert compare(tmp_path, made(10, parity=1.0)).last_mean_prompt_chars is None
