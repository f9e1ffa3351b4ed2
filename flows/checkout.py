"""The pull step of every deployment: a clean working folder with exactly the commit that a flow run asks for.

A worker has a clone of the project, named by R1FLOW_PROJECT, and runs in that clone's environment. Each flow run gets
a folder of its own below runs/checkouts/: a clone of the clone, which shares git's objects with it, and DVC's cache.
So runs of different commits and params stand side by side, and whatever a run leaves behind is gone with its folder.

In prefect.yaml:

    pull:
      - flows.checkout.checkout:
          requires: []

The commit comes from the flow run's parameter `commit`: any name that git understands, a branch being the origin's.
Without one it is what the clone has checked out. The clone's own files are never touched.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.config import Config
from filelock import FileLock, Timeout
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, TerminationSignal

from flows.repository import NETWORK_SECONDS, git
from pipeline.errors import InputError
from pipeline.job import DAG_FILE

PROJECT = "R1FLOW_PROJECT"
COMPILED = "pipeline/**/__pycache__/*.so"  # named by a hash of all that they are made of


def checkout() -> dict[str, str]:
    """Make the folder of this flow run. Returns {"directory": its path}, which Prefect makes the working folder.

    Raises InputError where R1FLOW_PROJECT or the commit is none, ConnectionError where git's server does not answer.
    """
    project = project_clone()
    commit = runtime.flow_run.parameters.get("commit")
    with _alone(project):
        sha = resolve(project, commit)
        sweep(project)
    folder = _checkouts(project) / str(runtime.flow_run.id)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier try at this very run
    git(project, "clone", "--quiet", "--shared", "--no-checkout", str(project), str(folder))
    git(folder, "checkout", "--quiet", "--detach", sha)
    _share_cache(project, folder)
    _share_compiled(project, folder)
    return {"directory": str(folder)}


def project_clone() -> Path:
    """The clone that R1FLOW_PROJECT names. Raises InputError."""
    named = os.environ.get(PROJECT)
    if not named:
        raise InputError(f"{PROJECT}: not set: a worker's environment has to name its clone of the project")
    project = Path(named).resolve()
    if not (project / ".git").exists() or not (project / DAG_FILE).is_file():
        raise InputError(f"{PROJECT}: {named}: no git clone of a project with {DAG_FILE}")
    return project


def resolve(project: Path, commit: str | None) -> str:
    """The SHA of a commit, which is fetched unless it is here; None: what is checked out. Raises InputError."""
    if commit is None:
        return git(project, "rev-parse", "HEAD")
    if commit.startswith("-"):
        raise InputError(f"commit: {commit!r}: is no commit, branch or tag")
    if _is_sha(commit) and (here := _known(project, commit)):
        return here
    remotes = git(project, "remote").split()
    if remotes:
        git(project, "fetch", "--quiet", "--tags", "--force", remotes[0], timeout=NETWORK_SECONDS)
    for name in (*(f"{remote}/{commit}" for remote in remotes[:1]), commit):
        if here := _known(project, name):
            return here
    raise InputError(f"commit: {commit!r}: neither in {project} nor at its remote: push it there first")


def _is_sha(commit: str) -> bool:
    return len(commit) == 40 and all(digit in "0123456789abcdef" for digit in commit)


def _known(project: Path, name: str) -> str | None:
    try:
        return git(project, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except InputError:
        return None


def sweep(project: Path) -> None:
    """Remove the folders of flow runs that are over: of those that were killed, as the others remove their own."""
    folders = [folder for folder in _checkouts(project).glob("*") if folder.is_dir()]
    if not folders:
        return
    with get_client(sync_client=True) as client:
        for folder in folders:
            try:
                state = client.read_flow_run(uuid.UUID(folder.name)).state
            except (ValueError, ObjectNotFound):  # not ours, or another server's
                continue
            if state is not None and state.is_final():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def removed_afterwards(folder: Path) -> Iterator[None]:
    """Remove the folder of a flow run, and leave for the next ones what it has compiled.

    Where the worker stops the run the folder stays for `sweep`: the worker starts one more process in it, for hooks.
    """
    project, stopped = project_clone(), False
    try:
        yield
    except TerminationSignal:
        stopped = True
        raise
    finally:
        if folder.parent == _checkouts(project) and not stopped:
            _share_compiled(folder, project)
            os.chdir(project)
            shutil.rmtree(folder, ignore_errors=True)


def _checkouts(project: Path) -> Path:
    return project / "runs" / "checkouts"


@contextmanager
def _alone(project: Path) -> Iterator[None]:
    """One flow run at a time fetches into a clone: git's references have no lock that waits."""
    _checkouts(project).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(_checkouts(project) / ".lock", timeout=2 * NETWORK_SECONDS):
            yield
    except Timeout as error:
        raise ConnectionError(f"{project}: another flow run keeps fetching into it: {error}") from error


def _share_cache(project: Path, folder: Path) -> None:
    """DVC's settings that git does not hold are the clone's, credentials among them, and so is its cache."""
    local = project / ".dvc" / "config.local"
    if local.is_file():
        shutil.copy2(local, folder / ".dvc" / "config.local")
    here = project / ".dvc"
    with Config(str(folder / ".dvc")).edit("local") as settings:
        settings["cache"]["dir"] = Config(str(here))["cache"].get("dir", str(here / "cache"))


def _share_compiled(source: Path, target: Path) -> None:
    for file in source.glob(COMPILED):
        copy = target / file.relative_to(source)
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy.with_suffix(f".{os.getpid()}"))
            copy.with_suffix(f".{os.getpid()}").replace(copy)
