"""Params of another file take the place of the project's own."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.workspace import adopt_params
from tests.project import PARAMS, FlowProject


def variant(folder: Path, seed: int) -> Path:
    path = folder / f"seed{seed}.yaml"
    path.write_text(PARAMS.replace("seed: 1", f"seed: {seed}"))
    return path


def test_params_that_git_holds_are_replaced_without_a_copy(flow_project: FlowProject) -> None:
    root = flow_project.root
    told = adopt_params(root, variant(root, 2))
    assert (
        told
        == f"params.yaml now holds {root / 'seed2.yaml'}; `git checkout params.yaml` brings the committed ones back"
    )
    assert "seed: 2" in (root / "params.yaml").read_text()


def test_params_that_git_does_not_hold_are_copied_first(flow_project: FlowProject) -> None:
    root = flow_project.root
    adopt_params(root, variant(root, 2))
    told = adopt_params(root, variant(root, 3))
    assert "seed: 2" in (root / told.rpartition("those so far are in ")[2]).read_text()
    assert "seed: 3" in (root / "params.yaml").read_text()


def test_the_same_params_change_nothing(flow_project: FlowProject) -> None:
    root = flow_project.root
    before = (root / "params.yaml").stat()
    assert adopt_params(root, variant(root, 1)) == ""
    assert adopt_params(root, root / "params.yaml") == ""
    assert (root / "params.yaml").stat().st_ino == before.st_ino


def test_broken_params_change_nothing(flow_project: FlowProject) -> None:
    root = flow_project.root
    (root / "broken.yaml").write_text("seed: many\n")
    with pytest.raises(InputError, match=r"broken\.yaml: seed: 'many'"):
        adopt_params(root, root / "broken.yaml")
    assert (root / "params.yaml").read_text() == PARAMS


def test_a_folder_outside_git_keeps_a_copy(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)
    told = adopt_params(tmp_path, variant(tmp_path, 2))
    assert (tmp_path / told.rpartition("those so far are in ")[2]).read_text() == PARAMS
