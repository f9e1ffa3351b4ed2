"""Measures name the defective rows and no others, wherever they lie."""

from collections.abc import Callable, Iterator

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import chat
from pipeline.data import measures
from pipeline.data.measures import Accepted
from pipeline.records import PreferencePair, Problem, Trace, schema

ROWS = 200  # more than one conversation
SOME_ROWS = st.sets(st.integers(0, ROWS - 1), max_size=8)
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: not any(marker in text for marker in chat.MARKERS)
)

PROBLEMS = pl.DataFrame(
    [
        (f"{i:016x}", "made", "sum", f"What is {i} + {i}?", str(2 * i), "numeric", "en", float(i % 9), "train")
        for i in range(ROWS)
    ],
    schema=schema(Problem),
    orient="row",
)
TRACES = PROBLEMS.select(
    problem_id="id", thinking=pl.lit("Twice that: ") + pl.col("gold"), answer="gold", origin="source"
)
PAIRS = PROBLEMS.select("prompt", chosen="gold", rejected=pl.lit("I do not know."), origin="source")


def planted(table: pl.DataFrame, column: str, rows: set[int], value: str | None) -> pl.DataFrame:
    broken = pl.int_range(pl.len()).is_in(sorted(rows))
    return table.with_columns(pl.when(broken).then(pl.lit(value)).otherwise(column).alias(column))


def defective(measured: pl.DataFrame, column: str) -> set[int]:
    return set(measured[column].is_not_null().arg_true())


@pytest.mark.parametrize(
    ("column", "value", "defect"),
    [
        ("task", None, "missing"),
        ("gold", None, "missing"),
        ("prompt", "Say </think> twice", "marker"),
        ("gold", "twelve", "unreadable_gold"),
        ("gold", "7 apples", "unreadable_gold"),
    ],
)
@given(rows=SOME_ROWS)
def test_defects_of_problems(column: str, value: str | None, defect: str, rows: set[int]) -> None:
    measured = measures.measure_problems(planted(PROBLEMS, column, rows, value))
    assert defective(measured, defect) == rows
    assert measured.height == ROWS


def test_a_number_is_no_test_of_a_program() -> None:
    programs = planted(PROBLEMS, "verifier", set(range(ROWS)), "code")
    assert defective(measures.measure_problems(programs), "unreadable_gold") == set(range(ROWS))


@given(rows=SOME_ROWS.filter(lambda rows: len(rows) != 1))
def test_repeated_prompts(rows: set[int]) -> None:
    measured = measures.measure_problems(planted(PROBLEMS, "prompt", rows, "Again?"))
    assert defective(measured, "repeated_prompt") == rows


@pytest.mark.parametrize("marker", chat.MARKERS)
@pytest.mark.parametrize("column", ["thinking", "answer"])
def test_a_marker_in_a_trace_does_not_survive_the_template(column: str, marker: str) -> None:
    rows = {0, 63, 64, 150, 199}
    measured = measures.measure_traces(planted(TRACES, column, rows, f"so {marker} it is"), PROBLEMS)
    assert defective(measured, "lost_in_template") == rows


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_other_texts_survive_the_template(texts: list[tuple[str, str]]) -> None:
    problems = PROBLEMS.head(len(texts))
    traces = TRACES.head(len(texts)).with_columns(
        thinking=pl.Series([thinking for thinking, _ in texts]), answer=pl.Series([answer for _, answer in texts])
    )
    assert defective(measures.measure_traces(traces, problems), "lost_in_template") == set()


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    def change(old: str, new: str) -> None:
        assert old in chat.CHAT_TEMPLATE
        monkeypatch.setattr(chat, "CHAT_TEMPLATE", chat.CHAT_TEMPLATE.replace(old, new))
        chat._template.cache_clear()

    yield change
    monkeypatch.undo()
    chat._template.cache_clear()


@pytest.mark.parametrize(
    "spoiled",
    [
        "((message.reasoning_content or '') if loop.last else '')",  # R1's own template drops earlier thinking
        "((message.reasoning_content or '') if loop.index > 2 else '')",
        "(message.reasoning_content or '').split(' ')[-1]",
    ],
    ids=["earlier turns", "first turn", "every turn"],
)
def test_a_template_that_drops_thinking_is_found(template: Callable[[str, str], None], spoiled: str) -> None:
    template("(message.reasoning_content or '')", spoiled)
    assert defective(measures.measure_traces(TRACES, PROBLEMS), "lost_in_template")
    assert defective(measures.measure_traces(TRACES.head(1), PROBLEMS), "lost_in_template") == {0}


def test_a_template_that_strips_is_found_where_it_matters(template: Callable[[str, str], None]) -> None:
    template("(message.reasoning_content or '')", "(message.reasoning_content or '') | trim")
    measured = measures.measure_traces(planted(TRACES, "thinking", {5, 70}, "well,\n"), PROBLEMS)
    assert defective(measured, "lost_in_template") == {5, 70}


def test_traces_of_problems_that_are_held_out_or_unknown() -> None:
    problems = planted(PROBLEMS, "split", {3}, "evaluation")
    measured = measures.measure_traces(planted(TRACES, "problem_id", {8}, "nobody"), problems)
    assert measured["problem_split"][3] == "evaluation"
    assert measured["problem_split"][8] == "no such problem"
    assert set(measured["problem_split"][[*range(3), *range(9, ROWS)]]) == {"train"}


def test_a_repeated_problem_id_does_not_shift_the_traces() -> None:
    problems = planted(PROBLEMS, "id", {1, 2}, PROBLEMS["id"][0])
    assert measures.measure_traces(TRACES, problems).height == ROWS


@given(rows=SOME_ROWS)
def test_defects_of_pairs(rows: set[int]) -> None:
    same = measures.measure_pairs(
        planted(PAIRS, "rejected", rows, None).with_columns(pl.col("rejected").fill_null(pl.col("chosen"))), PROBLEMS
    )
    assert defective(same, "same_answer") == rows
    leaked = measures.measure_pairs(PAIRS, planted(PROBLEMS, "split", rows, "evaluation"))
    assert defective(leaked, "held_out_prompt") == rows
    marked = measures.measure_pairs(planted(PAIRS, "rejected", rows, "<eos>"), PROBLEMS)
    assert defective(marked, "marker") == rows


def test_columns_of_another_type_absent_or_unknown() -> None:
    problems = PROBLEMS.drop("split").with_columns(pl.col("difficulty").cast(pl.Int64), mood=pl.lit("good"))
    types = measures.column_types({"problems": problems, "traces": TRACES, "pairs": PAIRS})
    wrong = types.filter(pl.col("type") != pl.col("expected")).rows()
    assert wrong == [
        ("problems", "difficulty", "Int64", "Float64"),
        ("problems", "split", "absent", "String"),
        ("problems", "mood", "String", "absent"),
    ]


MIX = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1)


@given(MIX, MIX)
def test_task_drift_is_the_total_variation_distance(ours: dict[str, int], theirs: dict[str, int]) -> None:
    shares = [{task: count / sum(mix.values()) for task, count in mix.items()} for mix in (ours, theirs)]
    drift = measures.measure_drift(Accepted(30.0, shares[0]), Accepted(20.0, shares[1]))
    gained = sum(max(0.0, shares[0].get(task, 0) - shares[1].get(task, 0)) for task in "abcdef")
    assert drift["task_drift"][0] == pytest.approx(gained)
    assert drift["length_drift"][0] == pytest.approx(0.5)


def test_tables_without_rows_are_measured() -> None:
    for record, measure in ((Trace, measures.measure_traces), (PreferencePair, measures.measure_pairs)):
        assert measure(pl.DataFrame(schema=schema(record)), PROBLEMS).height == 0
