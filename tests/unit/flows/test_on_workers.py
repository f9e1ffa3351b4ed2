"""What a recipe asks the server before it sends a stage."""

from pathlib import Path

import pytest
from prefect.exceptions import ObjectNotFound

from flows import on_workers
from pipeline.errors import InputError
from pipeline.params import load_params
from tests.project import PARAMS

WORKERS = "workers: {default: gpu}\n"
STAGES = ("curation", "deployment")


class Server:
    """A Prefect server's client that knows some names."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read_deployment_by_name(self, name: str) -> None:
        if name not in self._names:
            raise ObjectNotFound(Exception())

    read_global_concurrency_limit_by_name = read_deployment_by_name


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ((), r"workers: 'gpu': the server has no deployment stage/gpu"),
        (("stage/gpu",), r"workers: 'gpu': the server has no global concurrency limit gpu"),
        (("stage/gpu", "gpu"), r"operation\.approval\.by: 'run': the server has no deployment follow/follow"),
        (("stage/gpu", "gpu", "follow/follow"), ""),
    ],
)
def test_what_the_server_does_not_know_is_told_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], missing: str
) -> None:
    monkeypatch.setattr(on_workers, "get_client", lambda **_: Server(*names))
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS + WORKERS + "tracking: {uri: 'http://tracking'}\noperation: {approval: {by: run}}\n")
    if missing:
        with pytest.raises(InputError, match=missing):
            on_workers.require_workers(load_params(params), STAGES)
    else:
        assert on_workers.require_workers(load_params(params), STAGES).default == "gpu"
