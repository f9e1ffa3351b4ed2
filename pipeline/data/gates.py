"""Whether curated data may pass: Great Expectations judges the measures of every table, and a page shows why.

Three things differ from the tool's own way. Expectations judge measures (pipeline.data.measures) instead of the texts,
which keeps a million rows within seconds. The context lives in memory: nothing is kept, nothing is sent. And its
renderer fills a page of ours, one file that loads nothing, because its own site fetches scripts from five hosts, shows
an empty index without them, and puts texts of the data into the page as live HTML.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import polars as pl

from pipeline.data import measures, rules
from pipeline.data.measures import Accepted
from pipeline.data.rules import Rule
from pipeline.files import atomic_file
from pipeline.params import Curation, Gates, RejectionSampling
from pipeline.process import importing

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
    from great_expectations.data_context.data_context.abstract_data_context import AbstractDataContext

ROWS_SHOWN = 20  # offending rows of a failed gate
TEXT_SHOWN = 200  # characters of each text in them
PAGE_TEMPLATE = Path(__file__).with_name("gates_page.jinja")


@dataclass(frozen=True, slots=True)
class Gate:
    """A rule and what became of it."""

    table: str
    rule: Rule
    passed: bool
    observed: str
    rows: list[dict[str, Any]]  # the first offending ones, or what a failed figure is made of; `row` counts from 1

    def summary(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "expectation": self.rule.expectation,
            "column": self.rule.column,
            "rule": self.rule.rule,
            "observed": self.observed,
            "passed": self.passed,
        }

    def __str__(self) -> str:
        head = f"{self.table}: {self.rule.expectation}({self.rule.column}): {self.observed}; rule: {self.rule.rule}"
        rows = (", ".join(f"{key}={value!r}" for key, value in row.items()) for row in self.rows)
        return "\n".join([head, *(f"    {row}" for row in rows)])


@dataclass(frozen=True, slots=True)
class GateReport:
    """The outcome of all gates. `str()` of it is the message for the terminal."""

    gates: list[Gate]
    page: Path  # the HTML page
    accepted: Accepted | None  # what the next set's drift is measured against; None where a gate failed or none is
    drift: dict[str, float]  # against the last accepted set; empty where there is none

    @property
    def failures(self) -> list[Gate]:
        return [gate for gate in self.gates if not gate.passed]

    def verdict(self) -> dict[str, Any]:
        """The outcome as a function of data and params: without times, and without drift, which depends on history."""
        gates = [gate for gate in self.gates if gate.table != "drift"]
        return {"passed": all(gate.passed for gate in gates), "gates": [gate.summary() for gate in gates]}

    def __str__(self) -> str:
        head = f"{len(self.failures)} of {len(self.gates)} quality gates failed; the page: {self.page}"
        return "\n".join([head, *(str(gate) for gate in self.failures)])


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is judged, by which rules, and which rows to show where it fails.

    Row i of the measures measures row i of `rows`; or, as `figures`, the measures are one row about all of `rows`.
    """

    name: str
    measured: pl.DataFrame
    rules: list[Rule]
    rows: pl.DataFrame
    figures: bool = False


def check(tables: Mapping[str, pl.DataFrame], curation: Curation, previous: Accepted | None, docs: Path) -> GateReport:
    """Judge curated `tables`, named as in `measures.TABLES`, and write the page into the folder `docs`.

    `previous` is the last accepted set. Where a table has not its record's columns, that alone is judged: nothing else
    can be measured.
    """
    context = _context()
    types = measures.column_types(tables)
    judged = [_judge(context, _Subject("schema", types, rules.schema_rules(), types))]
    accepted, drift = None, {}
    if all(gate.passed for gate in judged[0].gates):
        problems, traces, pairs, quarantine = (tables[name] for name in measures.TABLES)
        tasks, sources = measures.measure_tasks(problems), measures.measure_sources(problems, pairs, quarantine)
        accepted = measures.summary(problems, tasks)
        subjects = [
            _Subject("problems", measures.measure_problems(problems), rules.problem_rules(curation), problems),
            _Subject(
                "traces",
                measures.measure_traces(traces, problems),
                rules.trace_rules(curation.limits.thinking_chars),
                traces,
            ),
            _Subject("pairs", measures.measure_pairs(pairs, problems), rules.pair_rules(), pairs),
            _Subject("tasks", tasks, rules.task_rules(curation.gates), tasks),
            _set(problems, tasks, curation.gates),
            _Subject("sources", sources, rules.source_rules(), sources),
            _quarantine(quarantine, problems.height + pairs.height, curation.gates),
        ]
        if previous is not None:
            subjects.append(_drift(accepted, previous, curation.gates))
            drift = subjects[-1].measured.row(0, named=True)
        judged += [_judge(context, subject) for subject in subjects]
    gates = [gate for table in judged for gate in table.gates]
    report = GateReport(gates, docs / "index.html", accepted if all(gate.passed for gate in gates) else None, drift)
    _write_page(report, judged)
    return report


def check_selection(
    selected: pl.DataFrame, problems: pl.DataFrame, yields: pl.DataFrame, options: RejectionSampling, docs: Path
) -> GateReport:
    """Judge what rejection sampling selected, a table of `Trace`s, and write the page into the folder `docs`.

    `problems` are curation's; `yields` has one row per task and difficulty (pipeline.data.selection.yields).
    """
    context = _context()
    tasks = yields.group_by("task", maintain_order=True).agg(pl.col("problems", "answered").sum())
    tasks = tasks.with_columns((pl.col("answered") / pl.col("problems")).alias("yield"))
    whole = tasks.select((pl.col("answered").sum() / pl.col("problems").sum()).alias("yield"), traces=selected.height)
    rows = rules.trace_rules(None)
    judged = [
        _judge(context, _Subject("traces", measures.measure_traces(selected, problems), rows, selected)),
        _judge(context, _Subject("tasks", tasks, rules.yield_rules(options), tasks)),
        _judge(context, _Subject("set", whole, rules.selection_rules(options), tasks, figures=True)),
    ]
    report = GateReport([gate for table in judged for gate in table.gates], docs / "index.html", None, {})
    _write_page(report, judged)
    return report


def _set(problems: pl.DataFrame, tasks: pl.DataFrame, gates: Gates) -> _Subject:
    return _Subject("set", measures.measure_set(problems), rules.set_rules(gates), tasks, figures=True)


def _quarantine(quarantine: pl.DataFrame, kept: int, gates: Gates) -> _Subject:
    measured = measures.measure_quarantine(quarantine, kept)
    return _Subject("quarantine", measured, rules.quarantine_rules(gates), measures.reasons(quarantine), figures=True)


def _drift(current: Accepted, previous: Accepted, gates: Gates) -> _Subject:
    measured = measures.measure_drift(current, previous)
    return _Subject("drift", measured, rules.drift_rules(gates), measures.task_mixes(current, previous), figures=True)


@dataclass(frozen=True, slots=True)
class _Judged:
    name: str
    height: int | None  # None: figures about other tables
    gates: list[Gate]
    sections: list[str]  # HTML of Great Expectations' Data Docs


def _context() -> "AbstractDataContext":
    with importing():
        import great_expectations
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

    in_memory = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    return great_expectations.get_context(mode="ephemeral", project_config=in_memory)


def _judge(context: "AbstractDataContext", subject: _Subject) -> _Judged:
    """Validate one table's measures."""
    from great_expectations import ExpectationSuite, ValidationDefinition
    from great_expectations.expectations.registry import get_expectation_impl

    batch = context.data_sources.add_pandas(subject.name).add_dataframe_asset(subject.name)
    expectations = [
        get_expectation_impl(rule.expectation)(**rule.arguments, description=rule.rule) for rule in subject.rules
    ]
    validation = context.validation_definitions.add(
        ValidationDefinition(
            name=subject.name,
            data=batch.add_batch_definition_whole_dataframe(subject.name),
            suite=context.suites.add(ExpectationSuite(name=subject.name, expectations=expectations)),
        )
    )
    outcome = validation.run(
        batch_parameters={"dataframe": subject.measured.to_pandas()},
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": ROWS_SHOWN},
    )
    results = {_key(result): result for result in outcome.results}
    gates = [_gate(subject, rule, results[rule.expectation, rule.column]) for rule in subject.rules]
    return _Judged(subject.name, None if subject.figures else subject.measured.height, gates, _sections(outcome))


def _key(result: "ExpectationValidationResult") -> tuple[str, str]:
    """Expectation and column; the results come in an order of their own."""
    expectation = result.expectation_config
    assert expectation is not None
    return expectation.type, expectation.kwargs.get("column") or expectation.kwargs["column_A"]


def _gate(subject: _Subject, rule: Rule, result: "ExpectationValidationResult") -> Gate:
    assert result.result, result.exception_info
    passed, rows = bool(result.success), []
    if subject.figures:
        observed = f"{subject.measured[rule.column][0]:g}"
        rows = [] if passed else _cut(subject.rows[:ROWS_SHOWN])
    else:
        observed = f"{result.result['unexpected_count']} of {subject.measured.height} rows"
        offending = result.result["partial_unexpected_index_list"]
        values = subject.measured[offending, rule.column]
        shown = zip(offending, values, _cut(subject.rows[offending]), strict=True)
        rows = [{"row": index + 1, rule.column: value, **row} for index, value, row in shown]
    return Gate(subject.name, rule, passed, observed, rows)


def _cut(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return rows.with_columns(pl.col(pl.String).str.slice(0, TEXT_SHOWN)).to_dicts()


def _sections(outcome: "ExpectationSuiteValidationResult") -> list[str]:
    """The columns' sections of Great Expectations' Data Docs, with the data in them escaped."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaSectionView

    for result in outcome.results:
        counts: Any = result.result["partial_unexpected_counts"]
        result.result["partial_unexpected_counts"] = [
            {"value": html.escape(str(entry["value"])), "count": entry["count"]} for entry in counts
        ]
    page: Any = ValidationResultsPageRenderer().render(outcome).to_json_dict()
    _overview, *sections = page["sections"]
    view = DefaultJinjaSectionView()
    return [view.render({"section": section, "section_loop": {"index": i}}) for i, section in enumerate(sections)]


def _write_page(report: GateReport, tables: list[_Judged]) -> None:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(PAGE_TEMPLATE.read_text(encoding="utf-8")).render(report=report, tables=tables)
    with atomic_file(report.page) as temporary:
        temporary.write_text(page, encoding="utf-8")
