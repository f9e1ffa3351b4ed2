"""One server for all tests that leave it as they found it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serving.toys import Server, write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("serving") / "toy")


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"slots": 4, "queue": 8, "max_tokens": 480, "receive_seconds": 2.0, "request_seconds": 30.0}
    with Server(model, tmp_path_factory.mktemp("home"), **limits) as server:
        yield server
        assert "Traceback" not in server.output()
