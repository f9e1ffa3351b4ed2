"""Curation as a whole: what is kept, what is dropped and why, and that nothing is lost."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data import curate as module
from pipeline.data.curate import curate
from pipeline.data.funnel import Funnel
from pipeline.data.quarantine import REASONS, Reason
from pipeline.files import digest
from pipeline.params import Curation
from pipeline.records import PreferencePair, Problem, Quarantined, Trace, is_held_out, problem_id, read_table

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"

STORY = (
    "{name} walks to the market with {first} eggs in a basket and sells {second} of them to the neighbours who live "
)
STORY += "beside the old bridge, so how many of the eggs are still in the basket when the evening comes?"


def story(name: str = "Ann", first: int = 30, second: int = 12, **columns: Any) -> dict[str, Any]:
    prompt = STORY.format(name=name, first=first, second=second)
    return {"prompt": prompt, "gold": str(first - second), "work": f"{first}-{second}={first - second}", **columns}


def source(name: str, rows: list[dict[str, Any]], folder: Path, **options: Any) -> dict[str, Any]:
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    fields = {"thinking": "work"}
    described = {"name": name, "kind": "jsonl", "path": f"{name}.jsonl", "task": "story", "verifier": "numeric"}
    return described | {"fields": fields} | options


class Tables:
    """The tables that curation has written, and its counts."""

    def __init__(self, folder: Path, sources: list[dict[str, Any]], *, held_out: float = 0.2, **options: Any) -> None:
        self.folder = folder / "output"
        self.folder.mkdir(exist_ok=True)
        sections = Curation.model_validate({"sources": sources, **options})
        self.funnel: Funnel = curate(sections, seed=3, held_out=held_out, root=folder, folder=self.folder)
        self.problems = read_table(self.folder / "problems.parquet", Problem)
        self.traces = read_table(self.folder / "traces.parquet", Trace)
        self.pairs = read_table(self.folder / "pairs.parquet", PreferencePair)
        self.quarantine = read_table(self.folder / "quarantine.parquet", Quarantined)

    @property
    def reasons(self) -> list[tuple[str, int, str]]:
        return self.quarantine.select("source", "row", "reason").rows()


def test_problems_and_traces_of_a_source(tmp_path: Path) -> None:
    rows = [story(first=first) for first in range(20, 60)]
    tables = Tables(tmp_path, [source("rows", rows, tmp_path)])
    assert tables.problems["prompt"].to_list() == [row["prompt"] for row in rows]
    for problem in tables.problems.iter_rows(named=True):
        assert problem["id"] == problem_id(problem["prompt"], problem["gold"])
        assert problem["split"] == ("evaluation" if is_held_out(problem["prompt"], 3, 0.2) else "train")
    train = tables.problems.filter(pl.col("split") == "train")
    assert 0 < train.height < 40
    assert tables.traces["problem_id"].to_list() == train["id"].to_list()
    assert tables.traces.row(0)[1:] == ("20-12=8", "8", "rows")


def test_duplicates_go_with_a_word_about_which_row_they_are_like(tmp_path: Path) -> None:
    rows = [story(), story("Ben"), story(prompt=story()["prompt"].upper()), story(first=31), story(gold="17")]
    tables = Tables(tmp_path, [source("rows", rows, tmp_path)])
    assert tables.reasons == [("rows", 2, Reason.NEAR), ("rows", 3, Reason.EXACT), ("rows", 5, Reason.EXACT)]
    details = tables.quarantine["detail"].to_list()
    assert details[0].endswith("with rows rows.jsonl:1")
    assert details[1:] == [
        "the same question as rows rows.jsonl:1",
        "the same question as rows rows.jsonl:1, with another gold answer",
    ]


def test_a_train_row_equal_to_an_evaluation_row_goes_wherever_it_stands(tmp_path: Path) -> None:
    first = source("first", [story(), story("Ben"), story(first=90)], tmp_path, split="train")
    test = source("test", [story()], tmp_path, split="evaluation")
    tables = Tables(tmp_path, [first, test])
    assert tables.problems.select("source", "split").rows() == [("test", "evaluation"), ("first", "train")]
    assert tables.reasons == [("first", 1, Reason.EXACT), ("first", 2, Reason.NEAR)]


def test_a_train_row_that_holds_an_evaluation_prompt_is_contaminated(tmp_path: Path) -> None:
    quoted = f"Here is a riddle from a book of {3} riddles. {story()['prompt']} Answer with a number and say why."
    train = source("train", [story(prompt=quoted), story(second=13)], tmp_path, split="train")
    test = source("test", [story()], tmp_path, split="evaluation")
    tables = Tables(tmp_path, [train, test])
    assert tables.reasons == [("train", 1, Reason.OVERLAP)]
    assert tables.problems.row(0, named=True)["id"] in tables.quarantine["detail"][0]


def test_an_evaluation_row_that_was_dropped_contaminates_nothing(tmp_path: Path) -> None:
    test = source("test", [story(), story("Ben")], tmp_path, split="evaluation")
    quoted = (
        f"{story('Ben')['prompt']} Say first what a basket is good for, then draw the bridge and write down each step."
    )
    train = source("train", [story(prompt=quoted)], tmp_path, split="train")
    tables = Tables(tmp_path, [test, train], decontamination={"overlap": 1.0})
    assert tables.reasons == [("test", 2, Reason.NEAR)]


def test_difficulty_out_of_band_is_the_last_reason(tmp_path: Path) -> None:
    rows = [story(first=first, level=first) for first in (20, 30, 40)] + [story(first=40, level=40), story(first=35)]
    described = source("rows", rows, tmp_path, fields={"difficulty": "level"})
    tables = Tables(tmp_path, [described], difficulty={"min": 25, "max": 35})
    assert tables.reasons == [
        ("rows", 5, Reason.MISSING),
        ("rows", 1, Reason.DIFFICULTY),
        ("rows", 3, Reason.DIFFICULTY),
        ("rows", 4, Reason.EXACT),
    ]


def test_a_row_with_several_faults_has_the_first_reason(tmp_path: Path) -> None:
    rows = [story(prompt=7, gold=""), story(gold="", work="<think>"), story(gold="x", work="<think>")]
    rows += [story(prompt="Wie viele Eier sind noch im Korb, wenn es Abend wird? <think>", gold="3")]
    tables = Tables(tmp_path, [source("rows", rows, tmp_path), source("good", [story()], tmp_path)])
    assert [reason for *_, reason in tables.reasons] == [Reason.UNREADABLE, Reason.MISSING, Reason.GOLD, Reason.MARKER]


def test_a_program_is_asked_for_by_its_tests(tmp_path: Path) -> None:
    tests = '[["2 3", "5"]]'
    rows = [story(gold=tests), story("Ben", gold="5"), story("Cleo", gold="[]")]
    tables = Tables(
        tmp_path, [source("rows", rows, tmp_path, verifier="code"), source("good", [story("Dan")], tmp_path)]
    )
    assert tables.reasons == [("rows", 2, Reason.GOLD), ("rows", 3, Reason.GOLD)]
    assert tests in tables.problems["gold"].to_list()


def test_a_gold_answer_that_its_verifier_cannot_read_is_found_however_plain_it_looks(tmp_path: Path) -> None:
    golds = ["３４", "٣٤", "1," + ",".join(["000"] * 40), "1,234,567.5"]
    rows = [story("Ann", first, gold=gold) for first, gold in enumerate(golds, 30)]
    tables = Tables(tmp_path, [source("rows", rows, tmp_path)])
    assert tables.reasons == [("rows", row, Reason.GOLD) for row in (1, 2, 3)]


def test_a_task_is_a_plain_path(tmp_path: Path) -> None:
    tasks = ["a//b", "math/", "/math", "..", "math/../sums", "x" * 101, "math/sums", "day 1.5"]
    rows = [story("Ann", first, task=task) for first, task in enumerate(tasks, 30)]
    described = source("rows", rows, tmp_path)
    tables = Tables(tmp_path, [described | {"fields": {"thinking": "work", "task": "task"}}])
    assert tables.reasons == [("rows", row, Reason.UNREADABLE) for row in range(1, 7)]


def test_of_pairs_that_two_sources_make_each_is_kept_once(tmp_path: Path) -> None:
    made = {"kind": "generated", "problems": 20, "families": {"sum": 1.0}, "pairs": 1_000}
    tables = Tables(tmp_path, [{"name": "one", **made}, {"name": "two", **made}])
    again = tables.quarantine.filter(pl.col("file") == "pairs")
    assert set(again["source"]) == {"two"}
    assert tables.pairs.height + again.height == 2_000
    assert not tables.pairs.select("prompt", "chosen", "rejected").is_duplicated().any()


def test_generated_source_gives_pairs_too(tmp_path: Path) -> None:
    generated = {"kind": "generated", "name": "made", "problems": 50, "families": {"sum": 0.5, "reverse": 0.5}}
    tables = Tables(tmp_path, [generated])
    assert tables.problems.height == 50
    assert tables.pairs.height == tables.funnel.pairs > 0
    assert set(tables.pairs["origin"]) == {"made"}


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    generated = {"kind": "generated", "name": "made", "problems": 200, "families": {"sum": 0.5, "story": 0.5}}
    rows = source("rows", [story(first=first % 40) for first in range(100)], tmp_path)
    first = digest(Tables(tmp_path, [generated, rows]).folder)
    assert digest(Tables(tmp_path, [generated, rows]).folder) == first


def test_batches_do_not_change_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = source("rows", [story(first=20 + first % 30, second=first % 3) for first in range(200)], tmp_path)
    whole = Tables(tmp_path, [rows])
    monkeypatch.setattr(module, "BATCH_ROWS", 7)
    parts = Tables(tmp_path, [rows])
    assert parts.problems.equals(whole.problems)
    assert parts.traces.equals(whole.traces)
    assert sorted(parts.reasons) == sorted(whole.reasons)


LINES = st.one_of(
    st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"").replace(b"\r", b"")),
    st.fixed_dictionaries(
        {}, optional={"prompt": st.one_of(st.text(max_size=30), st.integers(), st.none()), "gold": st.text(max_size=5)}
    ).map(lambda row: json.dumps(row).encode()),
    st.integers(13, 15).map(lambda first: json.dumps(story(first=first)).encode()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(LINES, max_size=12))
def test_every_line_is_kept_or_quarantined_for_a_reason(tmp_path: Path, lines: list[bytes]) -> None:
    described = source("rows", [], tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([json.dumps(story()).encode(), *lines]))
    tables = Tables(tmp_path, [described])
    filled = 1 + sum(bool(line.strip()) for line in lines)
    assert tables.problems.height + tables.quarantine.height == filled
    assert set(tables.quarantine["reason"]) <= set(REASONS)


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_dir(), reason="the GSM8K files are not here")
def test_gsm8k_goes_through(tmp_path: Path) -> None:
    fields = {"prompt": "question", "gold": "answer", "answer_pattern": r"\n#### (.+)$", "thinking_strip": "<<[^>]*>>"}
    common = {"kind": "jsonl", "task": "gsm8k", "verifier": "numeric", "fields": fields}
    train = common | {"name": "gsm8k", "path": str(GSM8K / "train.jsonl"), "split": "train"}
    test = common | {"name": "gsm8k-test", "path": str(GSM8K / "test.jsonl"), "split": "evaluation"}
    tables = Tables(tmp_path, [train, test])
    assert tables.problems.group_by("split").len().sort("split").rows() == [("evaluation", 1319), ("train", 7472)]
    assert tables.reasons == [("gsm8k", 6692, Reason.NEAR)]
    assert not tables.traces["thinking"].str.contains("<<", literal=True).any()
