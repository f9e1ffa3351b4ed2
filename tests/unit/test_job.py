"""A stage's key changes with what it depends on and with nothing else."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.job import Job, identity, project_root


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


def test_the_root_is_found_from_below_and_missed_outside(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert project_root(project / "code") == project
    with pytest.raises(InputError, match="not an r1flow project"):
        project_root(tmp_path_factory.mktemp("elsewhere"))


def test_a_missing_input_says_which_stage_makes_it(project: Path) -> None:
    job = Job("second", project, "0", lambda metrics, step: None, lambda name, step, rows: None)
    with pytest.raises(InputError, match="run stage first first"):
        job.input("first", "model")
