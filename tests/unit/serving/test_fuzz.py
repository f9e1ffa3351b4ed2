"""Whatever fits the server's OpenAPI, or nearly does, gets no 5xx."""

import hypothesis
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from tests.unit.serving.toys import Server


def test_nothing_that_fits_the_schema_breaks_the_server(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    paths = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        paths.add(operation.path)

        @hypothesis.given(case=operation.as_strategy())
        @settings(max_examples=40, database=None, suppress_health_check=list(HealthCheck))
        def check(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and case.body.get("model"):
                case.body["model"] = server.name  # else each would end at its model's name
            case.call_and_validate(checks=[not_a_server_error], timeout=20)

        check()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics", "/health/ready"} <= paths
    assert server.ready()
