"""Gates name the defect and show the rows; sound data passes. Great Expectations is slow to load, so one check
carries many defects."""

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pipeline.data.gates import GateReport, check
from pipeline.data.measures import Accepted, read_accepted
from pipeline.params import Curation
from pipeline.records import PreferencePair, Problem, Quarantined, Trace, schema

pytestmark = pytest.mark.slow

ROWS = 200
RULES = Curation.model_validate(
    {
        "sources": [{"kind": "generated", "name": "made", "problems": 200, "families": {"sum": 1.0}}],
        "difficulty": {"min": 0.0, "max": 9.0},
        "gates": {"min_problems": 150, "max_quarantined": 0.1, "min_task_share": 0.2, "max_task_share": 0.8},
    }
)
Tables = dict[str, pl.DataFrame]


def sound() -> Tables:
    problems = pl.DataFrame(
        [
            {
                "id": f"{i:016x}",
                "source": "made",
                "task": "sum" if i % 2 else "story",
                "prompt": f"What is {i} + {i}?",
                "gold": str(2 * i),
                "verifier": "numeric",
                "language": "en",
                "difficulty": float(i % 9),
                "split": "evaluation" if i % 10 == 9 else "train",
            }
            for i in range(ROWS)
        ],
        schema=schema(Problem),
    )
    train = problems.filter(pl.col("split") == "train")
    return {
        "problems": problems,
        "traces": train.select(problem_id="id", thinking="prompt", answer="gold", origin="source"),
        "pairs": train.select("prompt", chosen="gold", rejected=pl.lit("Who knows?"), origin="source"),
        "quarantine": dropped(5),
    }


def dropped(rows: int) -> pl.DataFrame:
    return pl.DataFrame(
        [
            ("made", "made.jsonl", i, "unreadable" if i % 5 else "language", "no JSON", f"{{row {i}")
            for i in range(rows)
        ],
        schema=schema(Quarantined),
        orient="row",
    )


def judge(tables: Tables, docs: Path, previous: Accepted | None = None) -> GateReport:
    return check(tables, RULES, previous, docs)


DEFECTS = [  # table, row (from 0), column, bad value, the measure that must show it
    ("problems", 0, "id", "0000000000000001", "id"),  # row 1 has it as well
    ("problems", 2, "source", None, "missing"),
    ("problems", 3, "prompt", "", "prompt_chars"),
    ("problems", 4, "prompt", "?" * 4_001, "prompt_chars"),
    ("problems", 5, "gold", "", "gold_chars"),
    ("problems", 6, "verifier", "guess", "verifier"),
    ("problems", 7, "split", "test", "split"),
    ("problems", 8, "language", "tlh", "language"),
    ("problems", 10, "difficulty", 9.5, "difficulty"),
    ("problems", 11, "prompt", "What is 12 + 12?", "repeated_prompt"),  # row 12 asks that
    ("problems", 13, "prompt", "Why <answer>?", "marker"),
    ("problems", 14, "gold", "<script>alert('many')</script>", "unreadable_gold"),
    ("traces", 0, "origin", None, "missing"),
    ("traces", 21, "problem_id", "nobody", "problem_split"),
    ("traces", 22, "thinking", "", "thinking_chars"),
    ("traces", 23, "answer", "", "answer_chars"),
    ("traces", 24, "thinking", "so </think> done", "lost_in_template"),
    ("pairs", 0, "origin", None, "missing"),
    ("pairs", 31, "prompt", "", "prompt_chars"),
    ("pairs", 32, "chosen", "", "chosen_chars"),
    ("pairs", 33, "rejected", "", "rejected_chars"),
    ("pairs", 34, "chosen", "Who knows?", "same_answer"),
    ("pairs", 35, "prompt", "What is 9 + 9?", "held_out_prompt"),
    ("pairs", 36, "chosen", "<eos>", "marker"),
]
ALSO = {  # rows (from 1) that a defect elsewhere spoils
    ("problems", "id"): {2},
    ("problems", "repeated_prompt"): {13},
    ("problems", "unreadable_gold"): {6},
    ("traces", "problem_split"): {1, 8},
}


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> GateReport:
    tables = sound()
    for table, row, column, value, _ in DEFECTS:
        changed = tables[table][column].to_list()
        changed[row] = value
        tables[table] = tables[table].with_columns(pl.Series(column, changed, dtype=tables[table].schema[column]))
    for table in ("traces", "pairs"):
        tables[table] = pl.concat([tables[table], tables[table][60]])
    return judge(tables, tmp_path_factory.mktemp("docs"))


def test_every_defect_fails_its_gate_with_its_rows(spoiled: GateReport) -> None:
    found = {(gate.table, gate.rule.column): {row["row"] for row in gate.rows} for gate in spoiled.failures}
    expected: dict[tuple[str, str], set[int]] = {key: set(rows) for key, rows in ALSO.items()}
    for table, row, _, _, measure in DEFECTS:
        expected.setdefault((table, measure), set()).add(row + 1)
    expected["traces", "repeated"] = expected["pairs", "repeated"] = {61, 181}
    assert found == expected
    assert spoiled.accepted is None


def test_the_message_names_expectation_and_rows(spoiled: GateReport) -> None:
    message = str(spoiled)
    assert "traces: expect_column_values_to_be_in_set(problem_split): 3 of 181 rows" in message
    assert "row=22, problem_split='no such problem', problem_id='nobody'" in message
    assert str(spoiled.page) in message


def test_the_page_shows_the_rows_as_text_and_loads_nothing(spoiled: GateReport) -> None:
    page = spoiled.page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(" in page
    assert "<script" not in page
    assert not re.search(r"""(src|href)=(?!"#|"data:)|@import|url\(""", page)
    assert all(str(row["row"]) in page and gate.rule.rule for gate in spoiled.failures for row in gate.rows)
    assert [entry.name for entry in spoiled.page.parent.iterdir()] == ["index.html"]


def test_the_page_cuts_long_texts(spoiled: GateReport) -> None:
    assert all(len(str(value)) <= 200 for gate in spoiled.failures for row in gate.rows for value in row.values())


def test_sound_data_passes_with_one_verdict(tmp_path: Path) -> None:
    first, second = judge(sound(), tmp_path / "a"), judge(sound(), tmp_path / "b", previous=Accepted(1.0, {"sum": 1.0}))
    assert not first.failures, str(first)
    mean = sum(len(f"What is {i} + {i}?") for i in range(ROWS)) / ROWS
    assert first.accepted == Accepted(mean, {"story": 0.5, "sum": 0.5})
    assert [gate.rule.column for gate in second.failures] == ["length_drift", "task_drift"]
    assert second.drift["task_drift"] == 0.5
    assert second.failures[1].rows == [
        {"task": "story", "share": 0.5, "last_share": 0.0},
        {"task": "sum", "share": 0.5, "last_share": 1.0},
    ]
    assert json.dumps(first.verdict()) == json.dumps(second.verdict())
    assert first.verdict()["passed"] is True


def test_sets_as_a_whole(tmp_path: Path) -> None:
    tables = sound()
    few = tables["problems"].filter(pl.col("split") == "train").head(100)
    few = few.with_columns(task=pl.when(pl.int_range(pl.len()) < 90).then(pl.lit("sum")).otherwise(pl.lit("story")))
    empty = {name: pl.DataFrame(schema=schema(kind)) for name, kind in (("traces", Trace), ("pairs", PreferencePair))}
    report = judge({"problems": few, **empty, "quarantine": dropped(25)}, tmp_path)
    observed = {gate.rule.column: gate.observed for gate in report.failures}
    assert observed == {
        "share": "2 of 2 rows",
        "problems": "100",
        "held_out_problems": "0",
        "quarantined_share": "0.2",
    }
    shown = {gate.rule.column: gate.rows for gate in report.failures}
    assert [(row["task"], row["share"]) for row in shown["share"]] == [("story", 0.1), ("sum", 0.9)]
    assert [(row["reason"], row["rows"]) for row in shown["quarantined_share"]] == [("unreadable", 20), ("language", 5)]
    assert shown["quarantined_share"][0]["content"] == "{row 1"


@pytest.mark.parametrize("reason", ["missing field", "gold unreadable", "language"])
def test_a_source_of_which_nothing_was_understood_is_named_and_one_without_anything_new_is_not(
    reason: str, tmp_path: Path
) -> None:
    tables, lost = sound(), dropped(3)
    mistyped = lost.with_columns(source=pl.lit("mistyped"), reason=pl.lit(reason))
    known = lost.with_columns(source=pl.lit("known"), reason=pl.Series(["exact duplicate"] * 2 + ["unreadable"]))
    report = judge(tables | {"quarantine": pl.concat([mistyped, known])}, tmp_path)
    [gate] = report.failures
    assert (gate.rule.column, gate.rows[0]["source"]) == ("not_understood", "mistyped")
    assert "mistyped" in str(report)


def test_another_schema_is_all_that_is_judged(tmp_path: Path) -> None:
    tables = sound()
    report = judge(tables | {"traces": tables["traces"].rename({"thinking": "thought"})}, tmp_path)
    assert [gate.table for gate in report.gates] == ["schema"]
    assert [row["column"] for row in report.failures[0].rows] == ["thinking", "thought"]


def test_no_set_accepted_yet(tmp_path: Path) -> None:
    assert read_accepted(tmp_path / "accepted.json") is None


def test_great_expectations_is_loaded_only_when_data_are_judged() -> None:
    script = "import sys, pipeline.data.gates; assert 'great_expectations' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
