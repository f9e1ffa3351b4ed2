"""The command line: errors as one message, and nothing heavy before the arguments are known."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipeline import cli
from pipeline.data.pins import path_digest
from pipeline.errors import InputError
from pipeline.files import digest
from pipeline.store import Archive, open_store
from tests.project import FlowProject

R1FLOW = [sys.executable, "-c", "from pipeline.cli import main; main()"]


def r1flow(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*R1FLOW, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_help_is_quick(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "run" in r1flow("--help", cwd=tmp_path).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time: what others do on the machine meanwhile does not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "mlflow", "prefect", "dvc", "polars", "pydantic")
    program = f"import sys, pipeline.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("command", [["run"], ["status"], ["report"], ["doctor"], ["ask", "1+1=?"], ["study", "which"]])
def test_outside_a_project_every_command_says_so(tmp_path: Path, command: list[str]) -> None:
    result = r1flow(*command, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip().endswith("not an r1flow project")
    assert "Traceback" not in result.stderr


def test_a_digest_is_that_of_what_params_name(flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(path: str) -> str:
        return CliRunner().invoke(cli.app, ["digest", path], catch_exceptions=False).stdout.strip()

    below, data = flow_project.root / "below", flow_project.root / "elsewhere"
    for folder, content in ((flow_project.root, "here"), (data, "there")):
        (folder / "hub").mkdir(parents=True)
        for name in ("a.jsonl", "b.jsonl", "hub/a.jsonl"):
            (folder / name).write_text(content)
    below.mkdir()
    monkeypatch.delenv("R1FLOW_DATA", raising=False)
    monkeypatch.chdir(below)
    assert printed("*.jsonl") == path_digest("*.jsonl", flow_project.root)
    monkeypatch.setenv("R1FLOW_DATA", "elsewhere")
    assert printed("*.jsonl") == path_digest("*.jsonl", data)
    assert printed("hub") == digest(data / "hub")


def test_outside_a_project_a_digest_is_that_of_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("here")
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli.app, ["digest", "a.jsonl"]).stdout.strip() == digest(tmp_path / "a.jsonl")


def test_run_refuses_broken_params_before_anything_else(flow_project: FlowProject) -> None:
    params = flow_project.root / "params.yaml"
    params.write_text(params.read_text().replace("seed: 1", "seed: many\nsede: 1"))
    result = r1flow("run", cwd=flow_project.root)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"{params}: seed: 'many': Input should be a valid integer",
        f"{params}: sede: 1: there is no such key",
    ]
    assert flow_project.calls() == []


def test_ask_without_a_model_says_how_to_get_one(flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flow_project.root)
    result = CliRunner().invoke(cli.app, ["ask", "47+85=?"])
    assert isinstance(result.exception, InputError)
    assert "r1flow run" in str(result.exception)


@pytest.mark.slow  # it is tried several times
@pytest.mark.parametrize("command", [["store", "list"], ["history"]])
def test_a_store_that_does_not_answer_is_one_line(
    flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    params = flow_project.root / "params.yaml"
    places = "machine: {store: 's3://bucket', "
    params.write_text(params.read_text().replace("machine: {", places))
    result = r1flow(*command, cwd=flow_project.root)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("s3://bucket/")
    assert "http://127.0.0.1:9 does not answer" in line


def test_a_connection_error_that_names_no_place_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    for name in ("spin_briefly", "keep_freed_memory"):
        monkeypatch.setattr(cli, name, lambda: None)
    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ConnectionRefusedError):
        cli.main()


def test_figures_as_one_json_object_or_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    cli.bench.show({"seconds": 1.5, "dtype": "float32"}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"seconds": 1.5, "dtype": "float32"}
    cli.bench.show({"seconds": 1.5}, as_json=False)
    assert capsys.readouterr().out.split() == ["seconds", "1.5"]


def test_status_shows_what_is_stale(flow_project: FlowProject) -> None:
    result = r1flow("status", cwd=flow_project.root)
    assert result.returncode == 0
    assert result.stdout.count("stale") == 3


def test_the_store_is_listed_and_tidied(flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flow_project.root)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli.app, ["store", *arguments])

    assert "names no artifact store" in str(invoke("list").exception)
    params = flow_project.root / "params.yaml"
    params.write_text(params.read_text().replace("machine: {", "machine: {store: shared, "))
    archive = Archive(open_store("shared"))
    assert archive.move("releases/little", archive.put({"params.yaml": params}), over=None)
    loose = archive.put({"dvc.yaml": flow_project.root / "dvc.yaml"})
    for path in (flow_project.root / "shared").rglob("*"):
        os.utime(path, (1, 1))
    assert "releases/little" in invoke("list").stdout
    for arguments, left in (((), True), (("--delete",), False)):
        assert f"manifests/{loose}" in invoke("collect", *arguments).stdout
        assert (flow_project.root / "shared" / "manifests" / loose).is_file() == left
    assert invoke("collect").stdout == "0 objects, 0 bytes\n"
