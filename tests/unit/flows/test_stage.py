"""What a stage needs on a worker's machine."""

import pytest

from flows.stage import choose_remote, gpus_of
from pipeline.errors import InputError
from tests.project import FlowProject


def test_a_stage_that_has_ranks_takes_a_gpu_for_each(flow_project: FlowProject) -> None:
    dag, params = flow_project.root / "dvc.yaml", flow_project.root / "params.yaml"
    assert gpus_of(flow_project.root, "first") == 1
    dag.write_text(dag.read_text().replace("params: [seed]", "params: [seed, distributed]"))
    assert gpus_of(flow_project.root, "first") == 1
    params.write_text(params.read_text() + "distributed: {ranks: 4}\n")
    assert gpus_of(flow_project.root, "first") == 4
    assert gpus_of(flow_project.root, "aside") == 1


def test_a_remote_that_the_project_lacks_is_named(flow_project: FlowProject) -> None:
    with (flow_project.root / ".dvc" / "config").open("a") as config:
        config.write("['remote \"team\"']\n    url = s3://dvc/project\n")
    choose_remote(flow_project.root, "team")
    choose_remote(flow_project.root, None)  # which is the default by now
    with pytest.raises(InputError, match=r"workers\.remote: 'tean': no DVC remote of the project; there are team"):
        choose_remote(flow_project.root, "tean")
