"""What the quality gates demand, as plain data: for each table the expectations on its measures.

A rule names an expectation of Great Expectations and its arguments; pipeline.data.gates puts it to the test. Its column
is one of pipeline.data.measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pipeline.params import Curation, Gates, RejectionSampling
from pipeline.records import Split, Verifier


@dataclass(frozen=True, slots=True)
class Rule:
    """One demand on one column."""

    expectation: str  # e.g. expect_column_values_to_be_unique
    column: str
    rule: str  # in words
    arguments: dict[str, Any]


def schema_rules() -> list[Rule]:
    columns = {"column_A": "type", "column_B": "expected"}
    return [Rule("expect_column_pair_values_to_be_equal", "type", "the columns are those of the record", columns)]


def problem_rules(curation: Curation) -> list[Rule]:
    band = curation.difficulty
    bounded = [_between("difficulty", band.min, band.max)] if (band.min, band.max) != (None, None) else []
    return [
        Rule("expect_column_values_to_be_unique", "id", "no two problems share an id", {"column": "id"}),
        _sound("missing", "no field but the difficulty is null"),
        _between("prompt_chars", 1, curation.limits.prompt_chars),
        _between("gold_chars", 1, None),
        _member("verifier", get_args(Verifier)),
        _member("split", get_args(Split)),
        _member("language", ("", *curation.languages)),
        *bounded,
        _sound("repeated_prompt", "no prompt occurs twice"),
        _sound("marker", "no prompt holds a marker of the chat template"),
        _sound("unreadable_gold", "every gold answer can be read by its verifier"),
    ]


def trace_rules(thinking_chars: int | None) -> list[Rule]:
    return [
        _sound("missing", "no field is null"),
        _member("problem_split", ("train",)),
        _between("thinking_chars", 1, thinking_chars),
        _between("answer_chars", 1, None),
        _sound("repeated", "no trace occurs twice"),
        _sound("lost_in_template", "thinking and answer survive the chat template, also in an earlier turn"),
    ]


def yield_rules(options: RejectionSampling) -> list[Rule]:
    return [_between("yield", options.min_task_yield, None)]


def selection_rules(options: RejectionSampling) -> list[Rule]:
    return [_between("yield", options.min_yield, None), _between("traces", 1, None)]


def pair_rules() -> list[Rule]:
    return [
        _sound("missing", "no field is null"),
        *(_between(f"{text}_chars", 1, None) for text in ("prompt", "chosen", "rejected")),
        _sound("same_answer", "the chosen answer differs from the rejected one"),
        _sound("repeated", "no pair occurs twice"),
        _sound("held_out_prompt", "no prompt is held out for evaluation"),
        _sound("marker", "no text holds a marker of the chat template"),
    ]


def task_rules(gates: Gates) -> list[Rule]:
    return [_between("share", gates.min_task_share, gates.max_task_share)]


def set_rules(gates: Gates) -> list[Rule]:
    return [
        _between("problems", gates.min_problems, None),
        _between("train_problems", 1, None),
        _between("held_out_problems", 1, None),
    ]


def quarantine_rules(gates: Gates) -> list[Rule]:
    return [_between("quarantined_share", None, gates.max_quarantined)]


def source_rules() -> list[Rule]:
    return [_sound("not_understood", "of every source at least one row could be read")]


def drift_rules(gates: Gates) -> list[Rule]:
    return [
        _between("length_drift", None, gates.max_length_drift),
        _between("task_drift", None, gates.max_task_drift),
    ]


def _sound(defect: str, rule: str) -> Rule:
    """No row has this defect: the column that quotes defects is null everywhere."""
    return Rule("expect_column_values_to_be_null", defect, rule, {"column": defect})


def _between(figure: str, low: float | None, high: float | None) -> Rule:
    words = " and ".join(
        f"at {side} {bound:g}" for side, bound in (("least", low), ("most", high)) if bound is not None
    )
    arguments = {"column": figure, "min_value": low, "max_value": high}
    return Rule("expect_column_values_to_be_between", figure, f"{figure} is {words}", arguments)


def _member(column: str, values: Sequence[str]) -> Rule:
    words = ", ".join(repr(value) for value in values)
    arguments = {"column": column, "value_set": list(values)}
    return Rule("expect_column_values_to_be_in_set", column, f"{column} is one of {words}", arguments)
