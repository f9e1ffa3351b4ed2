"""Order and ancestry of stages, as DVC sees them."""

from pathlib import Path

import pytest

from flows.dag import Dag, read_dag
from pipeline.errors import InputError


def dag_of(folder: Path, text: str) -> Dag:
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    site_cache_dir = .dvc/tmp/site\n")
    (folder / "dvc.yaml").write_text(text)
    return read_dag(folder)


DIAMOND = """\
stages:
  report: {cmd: x, deps: [left, right]}
  right: {cmd: x, deps: [start], outs: [right]}
  left: {cmd: x, deps: [start], outs: [left]}
  start: {cmd: x, outs: [start]}
"""


def test_a_stage_comes_after_what_it_needs_and_otherwise_as_listed(tmp_path: Path) -> None:
    assert dag_of(tmp_path, DIAMOND).order == ("start", "right", "left", "report")


def test_until_keeps_a_stage_and_what_it_needs(tmp_path: Path) -> None:
    dag = dag_of(tmp_path, DIAMOND)
    assert dag.until("left") == ("start", "left")
    assert dag.until(None) == dag.order


def test_a_group_stands_for_its_members(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("students: {small: 1, large: 2}\n")
    text = DIAMOND + "  student:\n    foreach: ${students}\n    do: {cmd: x, deps: [left], outs: ['out/${key}']}\n"
    dag = dag_of(tmp_path, text)
    assert dag.until("student@large") == ("start", "left", "student@large")
    assert dag.until("student") == ("start", "left", "student@small", "student@large")


def test_an_unknown_stage_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no stage 'lift'; there are start, right, left, report"):
        dag_of(tmp_path, DIAMOND).until("lift")


def test_matrix_stages_are_expanded(tmp_path: Path) -> None:
    text = (
        "stages:\n  student:\n    matrix: {size: [small, large]}\n    cmd: x ${item.size}\n    outs: ['${item.size}']\n"
    )
    assert dag_of(tmp_path, text).order == ("student@small", "student@large")


@pytest.mark.parametrize(
    "text",
    [
        "stages: [",
        "stages:\n  a: {deps: [x]}\n",
        "stages:\n  a: {cmd: x, deps: [b], outs: [a]}\n  b: {cmd: x, deps: [a], outs: [b]}\n",
    ],
    ids=["not YAML", "no command", "cycle"],
)
def test_a_broken_dag_is_an_input_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"dvc\.yaml"):
        dag_of(tmp_path, text)


def test_writes_nothing_where_the_caller_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "project").mkdir()
    dag_of(tmp_path / "project", DIAMOND)
    assert list(elsewhere.iterdir()) == []
