"""A store that refuses or cannot be read is one line with its address, whoever asks it."""

import http.server
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.params import Tracking
from pipeline.tracking import Aliases, Description, keep_file, prepare, read_run, register, store
from pipeline.tracking.run import Run
from pipeline.tracking.store import require_answer, require_store, store_file

pytestmark = pytest.mark.slow  # MLflow is imported

Ask = Callable[[Tracking, Path], Any]

ASKED: dict[str, Ask] = {
    "champion": lambda options, root: Aliases(options, root).champion("r1flow-little"),
    "version": lambda options, root: Aliases(options, root).version("r1flow-little", 1),
    "read_run": lambda options, root: read_run(options, root, "base"),
    "keep_file": lambda options, root: keep_file(options, root, "0123abcd", root / "report.html"),
    "register": lambda options, root: register(options, root, [], "never"),
    "run": lambda options, root: Run().open(options, root, Description("base", "0123abcd", {}, {})),
    "require_store": lambda options, root: require_store(options, root, 60.0),
}


class Refusing(http.server.BaseHTTPRequestHandler):
    """It is well, and refuses every other question."""

    status = 401

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else self.status)
        self.end_headers()
        self.wfile.write(b"<html>\nwho are you?\n</html>")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which nothing has run yet, with its store."""
    root = tmp_path_factory.mktemp("empty")
    prepare(root)
    return root


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_refuses_is_one_line_and_may_pass(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask, status: int
) -> None:
    monkeypatch.setattr(Refusing, "status", status)
    with pytest.raises(ConnectionError, match=f"{refusing}: MLflow cannot use it: .* error code {status}") as refused:
        ask(Tracking(uri=refusing), tmp_path)
    assert "\n" not in str(refused.value)


def damage(path: Path) -> None:
    path.write_text("this is no database")


def outdate(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '90e64c465722'")
    database.close()


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(("spoil", "reason"), [(damage, "not a database"), (outdate, "out-of-date database schema")])
def test_a_database_that_cannot_be_used_is_one_line_and_final(
    empty: Path, tmp_path: Path, ask: Ask, spoil: Callable[[Path], None], reason: str
) -> None:
    store_file(tmp_path).parent.mkdir(parents=True)
    shutil.copy(store_file(empty), store_file(tmp_path))
    spoil(store_file(tmp_path))
    with pytest.raises(InputError, match=f"{store_file(tmp_path)}: MLflow cannot use it: .*{reason}") as refused:
        ask(Tracking(), tmp_path)
    assert "\n" not in str(refused.value)


def test_what_an_open_store_refuses_may_pass(empty: Path) -> None:
    (empty / "report.html").write_text("a page")
    with pytest.raises(ConnectionError, match=r"mlflow\.db: MLflow cannot use it: Run .*0123abcd"):
        keep_file(Tracking(), empty, "0123abcd", empty / "report.html")


@pytest.mark.parametrize("model", ["it's", 'say "yes"', 'it\'s "yes"', "r1flow-little"])
def test_a_model_that_is_not_registered_is_told_whatever_its_name(empty: Path, model: str) -> None:
    with pytest.raises(InputError, match="no registered model; known are none yet") as refused:
        Aliases(Tracking(), empty).version(model, 1)
    assert str(refused.value).startswith(f"{model}: ")


def test_a_version_that_is_not_there_is_told_with_those_that_are(empty: Path) -> None:
    client, _ = store.connect(Tracking(), empty)
    for model, number in (("it's there", 2), ("another", 1)):
        client.create_registered_model(model)
        for _ in range(number):
            client.create_model_version(model, source=str(empty))
    try:
        with pytest.raises(InputError, match=r"it's there: version 7: must be one of 1, 2$"):
            Aliases(Tracking(), empty).version("it's there", 7)
    finally:
        for model in ("it's there", "another"):
            client.delete_registered_model(model)


def test_a_store_is_asked_for_so_long_and_nothing_is_made_in_it(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    options = Tracking(experiment="another")
    require_store(options, empty, 60.0)
    assert MlflowClient(store.store_uri(options, empty)).get_experiment_by_name("another") is None
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda *_: time.sleep(30))
    with pytest.raises(ConnectionError, match="no answer within 0 s"):
        require_store(options, empty, 0.1)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:port", "http://[127.0.0.1"])
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri: http.*: no tracking server answers"):
        require_answer(uri)
