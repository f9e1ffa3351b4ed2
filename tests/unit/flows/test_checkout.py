"""The folder of a flow run: exactly one commit, with the clone's cache and settings."""

import signal
import uuid
from pathlib import Path

import pytest
from dvc.repo import Repo
from prefect.exceptions import TerminationSignal

from flows import checkout as module
from flows.checkout import checkout, removed_afterwards, resolve
from flows.on_workers import require_branch
from flows.repository import git, without_credentials
from pipeline.errors import InputError
from tests.project import FlowProject

WHO = ("-c", "user.name=test", "-c", "user.email=test@localhost")


@pytest.fixture
def clone(flow_project: FlowProject, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker's clone of the project, in which no flow run was yet."""
    folder = tmp_path_factory.mktemp("worker") / "clone"
    git(flow_project.root, "clone", "--quiet", str(flow_project.root), str(folder))
    monkeypatch.setenv("R1FLOW_PROJECT", str(folder))
    monkeypatch.setattr(module, "sweep", lambda project: None)  # there is no server
    return folder


def commit(project: FlowProject, text: str) -> str:
    """A new commit of the origin, that no clone has."""
    (project.root / "stage.py").write_text(text)
    git(project.root, *WHO, "commit", "--quiet", "--all", "--message=change")
    return git(project.root, "rev-parse", "HEAD")


def asked_for(monkeypatch: pytest.MonkeyPatch, commit: str | None) -> str:
    """A flow run that asks for a commit."""
    run = str(uuid.uuid4())
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", run)
    monkeypatch.setattr(module, "runtime", type("Runtime", (), {"flow_run": Run(run, {"commit": commit})}))
    return run


class Run:
    def __init__(self, id: str, parameters: dict[str, str | None]) -> None:
        self.id, self.parameters = id, parameters


def test_a_flow_run_gets_its_commit_and_the_clone_stays_as_it_is(
    flow_project: FlowProject, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = commit(flow_project, "print('new')\n")
    (clone / "stage.py").write_text("the worker's own business")
    (clone / ".dvc" / "config.local").write_text("[core]\n    remote = secret\n")
    (clone / "pipeline" / "__pycache__").mkdir(parents=True)
    (clone / "pipeline" / "__pycache__" / "kernels-1.so").touch()

    run = asked_for(monkeypatch, sha)
    folder = Path(checkout()["directory"])

    assert folder == clone / "runs" / "checkouts" / run
    assert (folder / "stage.py").read_text() == "print('new')\n"
    assert (folder / "pipeline" / "__pycache__" / "kernels-1.so").exists()
    assert git(folder, "rev-parse", "HEAD") == sha
    assert (clone / "stage.py").read_text() == "the worker's own business"
    with Repo(str(folder)) as repo, Repo(str(clone)) as own:
        assert repo.cache.local_cache_dir == own.cache.local_cache_dir
        assert repo.config["core"]["remote"] == "secret"

    (folder / "pipeline" / "__pycache__" / "kernels-2.so").touch()
    with pytest.raises(TerminationSignal), removed_afterwards(folder):
        raise TerminationSignal(signal.SIGTERM)
    assert folder.exists()  # the worker is not done with it
    with removed_afterwards(folder):
        pass
    assert not folder.exists()
    assert (clone / "pipeline" / "__pycache__" / "kernels-2.so").exists()


def test_a_branch_is_the_origins_and_no_commit_is_what_is_checked_out(flow_project: FlowProject, clone: Path) -> None:
    old = git(clone, "rev-parse", "HEAD")
    branch = git(clone, "branch", "--show-current")
    new = commit(flow_project, "print('new')\n")
    assert resolve(clone, None) == old
    assert resolve(clone, branch) == new
    assert resolve(clone, old) == old


@pytest.mark.parametrize("commit", ["nowhere", "0" * 40, "--upload-pack=touch x"])
def test_what_is_no_commit_is_refused(clone: Path, commit: str) -> None:
    with pytest.raises(InputError, match="commit: "):
        resolve(clone, commit)


@pytest.mark.parametrize("named", [None, "", "/nowhere", "tmp_path"])
def test_a_worker_without_a_clone_is_refused(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("R1FLOW_PROJECT", raising=False)
    if named is not None:
        monkeypatch.setenv("R1FLOW_PROJECT", str(tmp_path) if named == "tmp_path" else named)
    with pytest.raises(InputError, match="R1FLOW_PROJECT"):
        checkout()


@pytest.mark.parametrize("branch", ["", "two words", "a..b"])
def test_a_branch_that_cannot_be_is_refused_before_anything_runs(clone: Path, branch: str) -> None:
    assert require_branch("results") == "origin"
    with pytest.raises(InputError, match="branch: "):
        require_branch(branch)
    git(clone, "remote", "remove", "origin")
    with pytest.raises(InputError, match="has no remote"):
        require_branch("results")


def test_errors_of_git_tell_no_credentials(clone: Path) -> None:
    git(clone, "remote", "set-url", "origin", "http://user:s3cret@127.0.0.1:9/x.git")
    with pytest.raises(InputError) as failure:
        resolve(clone, "some-branch")
    assert "127.0.0.1" in str(failure.value)
    assert "s3cret" not in str(failure.value)
    assert without_credentials("to ssh://git:s3cret@host/x and http://tok@h/") == "to ssh://host/x and http://h/"
