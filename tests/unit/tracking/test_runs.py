"""One MLflow run per stage, whatever the store does."""

import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.errors import InputError
from pipeline.params import Tracking
from pipeline.tracking import Description, Tracker, flatten, git_tags, keep_file
from pipeline.tracking import runs as tracking
from pipeline.tracking.store import connect
from tests.mlflow_server import mlflow_server

pytestmark = pytest.mark.slow  # opening a new store takes seconds

WORK = Description("base", "0123abcd", {"seed": 7, "base": {"train": {"steps": 3}}}, {"artifacts/x": "f" * 64})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository whose store is there already."""
    root = tmp_path_factory.mktemp("project")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    (root / "code").write_text("1")
    for arguments in (["init", "--quiet"], ["add", "code"], ["commit", "--quiet", "--message=start"]):
        subprocess.run([*git, *arguments], cwd=root, check=True)
    return root


def runs(root: Path) -> list[Run]:
    """All runs in the project's own store, the newest first."""
    client = MlflowClient(f"sqlite:///{root}/runs/mlflow/mlflow.db")
    return list(client.search_runs(["1"]))


def test_a_run_says_what_it_was_of_and_how_it_went(project: Path) -> None:
    with Tracker(Tracking(), project, WORK) as tracker:
        for step in range(3):
            tracker.log({"train/loss": 1 / (step + 1)}, step)
        run_id = tracker.run_id
    run = runs(project)[0]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True).stdout.strip()
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "base", "FINISHED")
    assert run.data.params == {"seed": "7", "base.train.steps": "3"}
    assert run.data.tags["mlflow.source.git.commit"] == commit
    assert (run.data.tags["git.dirty"], run.data.tags["key"]) == ("false", "0123abcd")
    assert [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs] == [("artifacts/x", "f" * 32)]
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
    history = MlflowClient(f"sqlite:///{project}/runs/mlflow/mlflow.db").get_metric_history(run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


def test_a_table_is_a_page_among_the_artifacts(project: Path) -> None:
    with Tracker(Tracking(), project, WORK) as tracker:
        tracker.table("samples", 20, [{"prompt": "1+1=?", "reward": 1.0}])
        run_id = tracker.run_id
    [page] = (project / "runs" / "mlflow" / "artifacts").rglob("step-000020.html")
    assert page.parts[-4:-1] == (run_id, "artifacts", "samples")
    assert "<td>1+1=?</td><td>1</td>" in page.read_text()


def test_a_file_is_kept_with_a_run_that_has_ended_and_replaced_later(project: Path, tmp_path: Path) -> None:
    with Tracker(Tracking(), project, WORK) as tracker:
        run_id = tracker.run_id
    for content in ("old", "new"):
        (tmp_path / "report.html").write_text(content)
        keep_file(Tracking(), project, run_id, tmp_path / "report.html")
    [kept] = (project / "runs" / "mlflow" / "artifacts").rglob("report.html")
    assert (kept.read_text(), kept.parts[-3]) == ("new", run_id)


def test_changed_tracked_files_make_the_run_dirty_but_dvc_lock_does_not(project: Path) -> None:
    (project / "dvc.lock").write_text("x")
    assert git_tags(project)["git.dirty"] == "false"
    (project / "code").write_text("2")
    assert git_tags(project)["git.dirty"] == "true"
    subprocess.run(["git", "checkout", "--quiet", "code"], cwd=project, check=True)


def test_outside_git_there_is_no_commit(tmp_path: Path) -> None:
    assert git_tags(tmp_path) == {}


def test_a_failed_attempt_is_continued_and_a_finished_one_is_not(project: Path) -> None:
    ids = []
    for error in (RuntimeError("out of memory"), SystemExit(143), None, None):
        try:
            with Tracker(Tracking(), project, WORK) as tracker:
                tracker.log({"attempt": len(ids)}, len(ids))
                ids.append(tracker.run_id)
                if error is not None:
                    raise error
        except (RuntimeError, SystemExit):
            assert runs(project)[0].info.status == ("FAILED" if isinstance(error, RuntimeError) else "KILLED")
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert [run.info.status for run in runs(project)[:2]] == ["FINISHED", "FINISHED"]


def test_a_run_of_another_store_is_not_continued(project: Path) -> None:
    memo = project / "runs" / "base" / WORK.key / "mlflow_run"
    memo.parent.mkdir(parents=True, exist_ok=True)
    memo.write_text("0" * 32)
    with Tracker(Tracking(), project, WORK) as tracker:
        assert tracker.run_id != "0" * 32


def test_two_first_starts_at_once_both_get_a_run(tmp_path: Path) -> None:
    program = (
        "import logging, sys\nfrom pathlib import Path\nfrom pipeline.params import Tracking\n"
        "from pipeline.tracking import Description, Tracker\n"
        "logging.getLogger('pipeline.before')\n"
        "with Tracker(Tracking(), Path(sys.argv[1]), Description(sys.argv[2], 'key', {}, {})) as tracker:\n"
        "    tracker.log({'x': 1.0}, 0)\n"
        "sys.exit(logging.getLogger('pipeline.before').disabled)\n"  # migrating sets logging up, but not ours
    )
    both = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), stage]) for stage in ("base", "curation")]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert {run.info.run_name for run in runs(tmp_path)} == {"base", "curation"}


def test_a_server_that_does_not_answer_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri: http://127\.0\.0\.1:9: no tracking server answers"):
        Tracker(Tracking(uri="http://127.0.0.1:9"), tmp_path, WORK)


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "localhost:5000"])
def test_an_address_that_mlflow_cannot_use_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        Tracking(uri=uri)


def test_a_store_that_cannot_be_opened_stops_the_stage(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mlflow").mkdir(parents=True)
    (tmp_path / "runs" / "mlflow" / "mlflow.db").write_text("this is no database")
    with pytest.raises(InputError, match="not a database"), Tracker(Tracking(), tmp_path, WORK):
        pass


class Flaky:
    """A run whose server takes nothing while `away`."""

    away = False
    taken: list[tuple[Any, ...]] = []  # noqa: RUF012
    kept: dict[str, str] = {}  # noqa: RUF012
    closed = ""

    def __init__(self, *description: object) -> None:
        self.id = "id"

    def send(self, figures: list[tuple[Any, ...]]) -> None:
        if Flaky.away:
            raise ConnectionError("connection refused")
        assert len(figures) <= tracking.BATCH
        Flaky.taken += figures

    def keep(self, path: str, content: str) -> None:
        if Flaky.away:
            raise OSError("no route to the store")
        Flaky.kept[path] = content

    def close(self, status: str) -> None:
        if Flaky.away:
            raise ConnectionError("connection refused")
        Flaky.closed = status


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> None:
    Flaky.away, Flaky.taken, Flaky.kept, Flaky.closed = False, [], {}, ""
    monkeypatch.setattr(tracking, "RemoteRun", Flaky)
    monkeypatch.setattr(tracking, "SEND_SECONDS", 0.0)


def settle(tracker: Tracker) -> None:
    tracker._sending.result()


def test_figures_wait_for_a_server_that_comes_back(
    flaky: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(Tracking(), tmp_path, WORK) as tracker:
        Flaky.away = True
        for step in range(50):
            tracker.log({"loss": 1.0}, step)
            settle(tracker)
        assert Flaky.taken == []
        Flaky.away = False
    assert [figure[3] for figure in Flaky.taken] == list(range(50))
    assert Flaky.closed == "FINISHED"
    assert capsys.readouterr().err.count("\n") == 1


def test_figures_that_were_never_sent_are_counted_and_the_stage_goes_on(
    flaky: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "WAITING", 10)
    with Tracker(Tracking(), tmp_path, WORK) as tracker:
        Flaky.away = True
        for step in range(50):
            tracker.log({"loss": 1.0}, step)
            settle(tracker)
        assert len(tracker._buffer) <= 11
    assert "tracking: 50 figures were never sent" in capsys.readouterr().err


def test_the_last_tables_wait_for_a_server_that_comes_back(flaky: None, tmp_path: Path) -> None:
    with Tracker(Tracking(), tmp_path, WORK) as tracker:
        Flaky.away = True
        for step in range(30):
            tracker.table("samples", step, [{"reward": float(step)}])
            settle(tracker)
        assert Flaky.kept == {}
        Flaky.away = False
    assert sorted(Flaky.kept) == [f"samples/step-{step:06}.html" for step in range(10, 30)]


def test_tables_that_were_never_sent_are_counted_and_the_stage_goes_on(
    flaky: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(Tracking(), tmp_path, WORK) as tracker:
        Flaky.away = True
        tracker.table("samples", 0, [{"reward": 1.0}])
    assert "tracking: 1 tables were never sent" in capsys.readouterr().err


def test_a_table_that_gives_way_while_it_is_sent_is_no_error(
    flaky: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Tracker(Tracking(), tmp_path, WORK) as tracker:

        def keep(run: Flaky, path: str, content: str) -> None:
            tracker._tables.append(("another", ""))
            Flaky.kept[path] = content

        Flaky.away = True
        for step in range(tracking.WAITING_TABLES):
            tracker.table("samples", step, [{"reward": 1.0}])
        settle(tracker)
        monkeypatch.setattr(Flaky, "keep", keep)
        Flaky.away = False
        tracker.log({"loss": 1.0}, 0)
        settle(tracker)
        monkeypatch.undo()
    assert len(Flaky.kept) > 1


def test_many_figures_go_in_batches_and_cost_the_stage_little(flaky: None, tmp_path: Path) -> None:
    with Tracker(Tracking(), tmp_path, WORK) as tracker:
        started = time.process_time()
        for step in range(2_500):
            tracker.log({"a": 1.0, "b": 2.0}, step)
        assert time.process_time() - started < 2
    assert len(Flaky.taken) == 5_000


@pytest.mark.parametrize("name", ["pass@1", "yield/math/", "a//b", "../a", "1e+06"])
def test_a_name_that_mlflow_refuses_is_our_bug(flaky: None, tmp_path: Path, name: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(name)), Tracker(Tracking(), tmp_path, WORK) as tracker:
        tracker.log({name: 1.0}, 0)


def test_nested_params_become_dotted_names() -> None:
    nested = {"a": {"b": 1, "c": [1, 2]}, "sources": [{"kind": "jsonl"}], "none": None}
    assert flatten(nested) == {"a.b": "1", "a.c": "[1, 2]", "sources.0.kind": "jsonl", "none": "None"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with mlflow_server(tmp_path) as running:
        yield running


def test_a_server_that_dies_does_not_take_the_stage_with_it(
    server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, process = server
    with Tracker(Tracking(uri=uri), tmp_path, WORK) as tracker:
        assert MlflowClient(uri).get_run(tracker.run_id).data.params["seed"] == "7"
        os.killpg(process.pid, 9)
        tracker.log({"loss": 1.0}, 0)
        started = time.monotonic()
    assert time.monotonic() - started < 60
    assert "1 figures were never sent" in capsys.readouterr().err


def test_a_database_that_a_kill_left_unfinished_is_made_anew(tmp_path: Path) -> None:
    unfinished = tmp_path / "runs" / "mlflow" / ".mlflow.db.new"
    unfinished.parent.mkdir(parents=True)
    with sqlite3.connect(unfinished) as database:  # as in the middle of one of MLflow's migrations
        database.execute("CREATE TABLE _alembic_tmp_endpoints (endpoint_id TEXT)")
    database.close()
    client, experiment = connect(Tracking(), tmp_path)
    assert client.get_experiment(experiment).name == "r1flow"
    assert sorted(file.name for file in unfinished.parent.glob("*.db*")) == ["mlflow.db"]
    assert not unfinished.exists()
