"""The server that a flow speaks to. One of its own: tests/integration/test_flow.py."""

import socket

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server import own_server
from pipeline.errors import InputError


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}/api", "127.0.0.1:{}"])
def test_a_server_that_does_not_answer_is_told_in_one_line(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = address.format(closed.getsockname()[1])
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(InputError, match=f"^PREFECT_API_URL: {url}: no Prefect server answers there: .+$"),
        own_server(),
    ):
        pass
