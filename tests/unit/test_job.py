"""A stage's key changes with what it depends on and with nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.job import DAG_FILE, Job, at, identity, outputs, project_root, read_stages, require_inputs, require_stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "part.py").write_text("x = 1")
    (tmp_path / "params.yaml").write_text("seed: 0\nfirst: {a: 1}\nother: 2\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  first:\n    cmd: 'true'\n    deps: [code]\n    params: [seed, first]\n"
    )
    return tmp_path


def test_the_key_follows_code_and_params_and_nothing_else(project: Path) -> None:
    key = identity(project, "first").key
    params, code = project / "params.yaml", project / "code" / "part.py"
    params.write_text(params.read_text().replace("other: 2", "other: 3"))
    assert identity(project, "first").key == key
    params.write_text(params.read_text().replace("a: 1", "a: 2"))
    changed = identity(project, "first").key
    code.write_text("x = 2")
    assert len({key, changed, identity(project, "first").key}) == 3


def test_a_run_goes_on_with_another_number_of_ranks(project: Path) -> None:
    dag, params = project / "dvc.yaml", project / "params.yaml"
    dag.write_text(dag.read_text().replace("[seed, first]", "[seed, first, distributed]"))
    params.write_text(params.read_text() + "distributed: {ranks: 2}\n")
    two = identity(project, "first")
    params.write_text(params.read_text().replace("ranks: 2", "ranks: 3"))
    three = identity(project, "first")
    assert (three.key, three.params["distributed"]) == (two.key, {"ranks": 3})


def test_the_root_is_found_from_below_and_missed_outside(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert project_root(project / "code") == project
    with pytest.raises(InputError, match="not an r1flow project"):
        project_root(tmp_path_factory.mktemp("elsewhere"))


def test_a_rank_that_does_not_lead_ends_where_outputs_begin(project: Path) -> None:
    def silent(*told: object) -> None:
        pass

    job = Job("first", project, "key", silent, silent, leads=False)
    with pytest.raises(SystemExit) as ended:
        job.output("model")
    assert ended.value.code == 0


def test_a_missing_input_says_which_stage_makes_it(project: Path) -> None:
    job = Job("second", project, "0", lambda metrics, step: None, lambda name, step, rows: None)
    with pytest.raises(InputError, match="run stage first first"):
        job.input("first", "model")


def test_a_stage_whose_inputs_are_not_there_is_told_who_makes_them(group: Path) -> None:
    with pytest.raises(InputError, match="artifacts/before/out: missing; run stage before first"):
        require_inputs(group, "group@small")
    (group / "artifacts" / "before").mkdir(parents=True)
    (group / "artifacts" / "before" / "out").touch()
    require_inputs(group, "group@small")  # `code` is no stage's


GROUP = """\
stages:
  before: {cmd: x, deps: [code], outs: [artifacts/before/out]}
  group:
    foreach: ${group.members}
    do:
      cmd: python -m pipeline group@${key}
      deps: [code, artifacts/before/out]
      params: [seed, "group.members.${key}"]
      outs: ["artifacts/group/${key}/model"]
      metrics: ["artifacts/group/${key}/metrics.json"]
"""


@pytest.fixture
def group(project: Path) -> Path:
    (project / "dvc.yaml").write_text(GROUP)
    (project / "params.yaml").write_text("seed: 0\ngroup:\n  members:\n    small: {a: 1}\n    not-so_small2: {a: 2}\n")
    return project


def dvcs_stages(root: Path) -> dict[str, Any]:
    """What DVC makes of dvc.yaml: every stage by name, its parts as paths and names."""
    with Repo(str(root), uninitialized=True) as repo:
        return {
            stage.name: {
                "cmd": stage.cmd,
                "deps": {dep.def_path for dep in stage.deps if not hasattr(dep, "params")},
                "params": {name for dep in stage.deps if hasattr(dep, "params") for name in dep.params},
                "outs": {out.def_path for out in stage.outs},
            }
            for stage in repo.index.stages
        }


def our_stages(root: Path) -> dict[str, Any]:
    return {
        stage: {
            "cmd": definition["cmd"],
            "deps": set(definition.get("deps", [])),
            "params": set(definition.get("params", [])),
            "outs": {path.relative_to(root).as_posix() for path in outputs(root, stage)},
        }
        for stage, definition in read_stages(root).items()
    }


def test_groups_are_expanded_as_dvc_does(group: Path) -> None:
    assert list(read_stages(group)) == ["before", "group@small", "group@not-so_small2"]
    assert our_stages(group) == dvcs_stages(group)


def test_the_recipe_is_read_as_dvc_reads_it(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    assert our_stages(tmp_path) == dvcs_stages(tmp_path)


def test_the_key_of_a_member_follows_its_own_params(group: Path) -> None:
    (group / "artifacts" / "before").mkdir(parents=True)
    (group / "artifacts" / "before" / "out").touch()
    small, other = (identity(group, f"group@{name}") for name in ("small", "not-so_small2"))
    assert small.params == {"seed": 0, "group.members.small": {"a": 1}}
    params = group / "params.yaml"
    params.write_text(params.read_text().replace("a: 1", "a: 3"))
    assert identity(group, "group@small").key != small.key
    assert identity(group, "group@not-so_small2").key == other.key


def test_an_unknown_member_is_named_with_those_that_exist(group: Path) -> None:
    require_stage(group, "group@small")
    for stage in ("group@large", "group"):
        with pytest.raises(InputError, match=rf"no stage '{stage}'; there are before, group@small, group@not-so_"):
            require_stage(group, stage)


@pytest.mark.parametrize(
    ("dag", "params", "message"),
    [
        (GROUP.replace("${group.members}", "[a, b]"), "group: {}", r"group.foreach: \['a', 'b'\]: must be one section"),
        (GROUP.replace("${group.members}", "x${group.members}"), "group: {}", r"must be one section of params"),
        (GROUP, "group: {members: [a]}", r"params.yaml: group.members: \['a'\]: must be a mapping"),
        (GROUP, "seed: 0", r"params.yaml: group.members: None: must be a mapping"),
        (GROUP, "group: [", r"params.yaml: not valid YAML"),
        (GROUP.replace("cmd: x", "cmd: 'x ${seed}'"), "group: {members: {a: 1}}", r"'x \${seed}': no template"),
        (GROUP.replace("@${key}", "@${item.a}"), "group: {members: {a: 1}}", r"no template but \${key}"),
    ],
)
def test_a_template_that_is_not_understood_is_refused(project: Path, dag: str, params: str, message: str) -> None:
    (project / DAG_FILE).write_text(dag)
    (project / "params.yaml").write_text(params)
    with pytest.raises(InputError, match=message):
        read_stages(project)


def test_the_outputs_of_a_member_lie_under_its_group(group: Path) -> None:
    job = Job("group@small", group, "0", lambda metrics, step: None, lambda name, step, rows: None)
    assert job.member == "small"
    assert job.output("model") == group / "artifacts" / "group" / "small" / "model"
    assert job.scratch == group / "runs" / "group@small" / "0"
    job.output("model").mkdir(parents=True)
    assert job.input("group@small", "model") == job.output("model")


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers())
def test_a_dotted_name_finds_what_was_put_there(path: list[str], value: int) -> None:
    nested: Any = value
    for part in reversed(path):
        nested = {part: nested}
    assert at(nested, ".".join(path)) == value
    assert at(nested, ".".join([*path, "a"])) is None
