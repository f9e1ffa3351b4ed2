from pathlib import Path

import pytest

from pipeline import ranks
from pipeline.errors import EXIT_BUG, EXIT_GATE, InputError
from pipeline.params import Distributed, load_params
from pipeline.state import Attempt, read_state
from tests.project import DAG, PARAMS


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(DAG.replace("params: [seed]", "params: [seed, distributed]"))
    (tmp_path / "params.yaml").write_text(PARAMS + "distributed: {ranks: 2, zero: 1}\n")
    return tmp_path


def test_a_stage_runs_on_ranks_where_dvc_yaml_says_that_it_depends_on_their_number(project: Path) -> None:
    params = ranks.wanted("first", project)
    assert params is not None
    assert params.distributed.world == 2
    assert ranks.wanted("last", project) is None
    assert ranks.wanted("unknown", project) is None
    (project / "params.yaml").write_text(PARAMS)
    assert ranks.wanted("first", project) is None


@pytest.mark.parametrize(
    ("number", "status", "code", "said"),
    [
        (0, 1, EXIT_BUG, ""),
        (0, EXIT_GATE, EXIT_GATE, ""),
        (1, -9, EXIT_BUG, "rank 1 was ended by signal 9"),
        (3, 2, 2, "rank 3 ended with status 2"),
        (1, 7, EXIT_BUG, "rank 1 ended with status 7"),
    ],
)
def test_the_first_rank_to_end_badly_says_how_the_stage_ended(
    tmp_path: Path, number: int, status: int, code: int, said: str
) -> None:
    with Attempt(tmp_path, "first"):
        pass
    assert ranks._ended("first", tmp_path, number, status) == code
    state = read_state(tmp_path, "first")
    assert state is not None
    assert said in state.error
    assert state.exit_code == (code if number else 0)  # the first rank has said by itself how it ended


NODES = Distributed(ranks=8, nodes=2, zero=3)


def test_several_nodes_meet_where_the_environment_says() -> None:
    where = ranks._rendezvous(NODES, {"R1FLOW_NODE_RANK": "1", "R1FLOW_RENDEZVOUS": "node-0:29500"})
    assert (where["rdzv_backend"], where["rdzv_endpoint"]) == ("static", "node-0:29500")
    assert where["rdzv_configs"]["rank"] == 1


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "R1FLOW_NODE_RANK: ''"),
        ({"R1FLOW_NODE_RANK": "2", "R1FLOW_RENDEZVOUS": "a:1"}, "R1FLOW_NODE_RANK: '2': must be this node's number"),
        ({"R1FLOW_NODE_RANK": "0"}, "R1FLOW_RENDEZVOUS: '': must be host:port"),
        ({"R1FLOW_NODE_RANK": "0", "R1FLOW_RENDEZVOUS": "node-0"}, "R1FLOW_RENDEZVOUS: 'node-0'"),
    ],
)
def test_a_node_that_does_not_know_its_place_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ranks._rendezvous(NODES, environment)


def test_ranks_share_the_threads_of_the_machine(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    told = ranks._environment(load_params(project / "params.yaml"))
    assert (told["OMP_NUM_THREADS"], told["R1FLOW_RANK_TIMEOUT"]) == ("3", "600.0")
