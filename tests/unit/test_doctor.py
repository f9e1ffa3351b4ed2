"""What the doctor finds broken."""

import http.server
import sys
import threading
from collections.abc import Iterator

import pytest

from pipeline import doctor
from pipeline.doctor import Check, examine
from pipeline.errors import InputError
from pipeline.model import native
from tests.project import FlowProject


@pytest.fixture
def server() -> Iterator[str]:
    """A server that knows no request."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def broken(project: FlowProject) -> dict[str, str]:
    return {check.name: check.detail for check in examine(project.root) if not check.ok}


def use_tracking(project: FlowProject, uri: str) -> None:
    with (project.root / "params.yaml").open("a") as params:
        params.write(f"tracking: {{uri: '{uri}'}}\n")


def test_a_sound_project_has_nothing_broken(flow_project: FlowProject) -> None:
    assert broken(flow_project) == {}


def test_services_that_do_not_answer_are_named(flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tracking(flow_project, "http://127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    found = broken(flow_project)
    assert "http://127.0.0.1:9: no tracking server answers" in found["tracking"]
    assert "PREFECT_API_URL=http://127.0.0.1:9/api" in found["prefect"]


def test_an_address_that_is_not_prefects_is_broken(
    flow_project: FlowProject, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
    assert set(broken(flow_project)) == {"prefect"}


def test_an_address_that_is_not_mlflows_is_broken(flow_project: FlowProject, server: str) -> None:
    use_tracking(flow_project, server)
    found = broken(flow_project)
    assert set(found) == {"tracking"}
    assert found["tracking"].startswith(f"tracking.uri: {server}: MLflow cannot use it: ")


def test_a_store_that_mlflow_cannot_read_is_broken(flow_project: FlowProject) -> None:
    database = flow_project.root / "runs" / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    database.write_text("this is no database")
    assert "not a database" in broken(flow_project)["tracking"]


def test_broken_params_are_shown(flow_project: FlowProject) -> None:
    (flow_project.root / "params.yaml").write_text("seed: many\n")
    assert "seed: 'many'" in broken(flow_project)["params"]


def test_a_package_of_the_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["psutil>=999", "no-such-thing>=1"])
    [check] = doctor._packages()
    assert not check.ok
    assert "psutil" in check.detail
    assert "no-such-thing missing" in check.detail


def test_without_torch_the_rest_is_looked_at(flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    checks = {check.name: check.ok for check in examine(flow_project.root)}
    assert not checks["torch"]
    assert checks["params"]


def test_a_machine_without_a_sandbox_is_sound_and_says_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise InputError("verifier code: bwrap is not installed")

    monkeypatch.setattr(doctor, "require_sandbox", missing)
    check = doctor._sandbox()
    assert check.ok
    assert check.detail == "none: verifier code: bwrap is not installed"


def test_a_folder_that_cannot_be_written_is_broken(flow_project: FlowProject) -> None:
    (flow_project.root / "artifacts").write_text("a file where the folder should be")
    assert "artifacts" in broken(flow_project)["writable"]


def test_an_unreachable_remote_is_broken(flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch) -> None:
    with (flow_project.root / ".dvc" / "config").open("a") as config:
        config.write(
            "    remote = far\n['remote \"far\"']\n    url = s3://bucket/prefix\n    endpointurl = http://127.0.0.1:9\n"
        )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(doctor, "SERVICE_SECONDS", 2.0)
    found = doctor._dvc_remote(flow_project.root)
    assert found == Check("dvc remote", False, "no answer within 2 s: dvc ls-url remote://far/")


def test_a_remote_where_nothing_was_pushed_yet_is_sound(
    flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SERVICE_SECONDS", 60.0)  # a folder answers, as soon as DVC has started
    with (flow_project.root / ".dvc" / "config").open("a") as config:
        config.write(f"    remote = near\n['remote \"near\"']\n    url = {flow_project.root / 'remote'}\n")
    assert doctor._dvc_remote(flow_project.root).ok


def test_a_machine_without_a_compiler_is_sound_and_says_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native, "COMPILERS", ())
    check = doctor._kernels()
    assert check.ok
    assert "up to twice as slow" in check.detail


def test_an_artifact_store_is_tried_and_left_as_it_was(flow_project: FlowProject) -> None:
    def use_store(place: str) -> None:
        params = flow_project.root / "params.yaml"
        params.write_text(params.read_text().replace("machine: {", f"machine: {{store: {place}, "))

    use_store("shared")
    assert broken(flow_project) == {}
    assert list((flow_project.root / "shared").glob("*probe*")) == []
