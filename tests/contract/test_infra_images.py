"""What the images are made of, and how a container begins."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "infra" / "docker"
DOCKERFILES = sorted(DOCKER.glob("*Dockerfile"))
BIN = Path(sys.executable).parent


def _instructions(path: Path) -> list[tuple[str, str]]:
    """Name and arguments, in their order; continued lines in one."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def _stages(path: Path) -> dict[str, dict[str, str]]:
    """Of each stage the last instruction of each kind, its base's included; FROM is the image that all begins with."""
    stages: dict[str, dict[str, str]] = {}
    arguments: dict[str, str] = {}
    stage: dict[str, str] = {}
    for name, rest in _instructions(path):
        if name == "FROM":
            base, _, own = rest.partition(" AS ")
            base = arguments.get(base.strip("${}"), base)
            stage = stages[own] = dict(stages.get(base, {"FROM": base}))
        elif name == "ARG" and not stages:
            arguments |= [rest.split("=", 1)]
        else:
            stage[name] = rest
    return stages


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path: Path) -> None:
    linter = shutil.which("hadolint", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("no hadolint")
    done = subprocess.run([linter, "--no-color", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_watched_and_not_roots(path: Path) -> None:
    stages = _stages(path).values()
    for stage in stages:
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", stage["FROM"]), "must have the tag of a release"
    made = [stage for stage in stages if "CMD" in stage]
    assert made
    for stage in made:
        assert stage["USER"] == "1000:1000"
        assert "HEALTHCHECK" in stage
    text = path.read_text(encoding="utf-8")
    assert "requirements.lock" in text
    assert not re.search(r"(?i)(password|secret|token|api_key)\s*=", text)


def test_what_the_images_copy_is_there_and_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored, "an image takes nothing that is not named"
    for path in DOCKERFILES:
        for name, rest in _instructions(path):
            if name == "COPY" and "--from=" not in rest:
                *sources, _ = [word for word in rest.split() if not word.startswith("--")]
                for source in sources:
                    assert (ROOT / source).exists()
                    assert any(Path(source).match(line[1:]) for line in ignored if line.startswith("!")), source


# ------------------------------------------------------------ project.sh


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    folder = tmp_path / "origin"
    folder.mkdir()
    _git(folder, "init", "--quiet", "--initial-branch=main")
    for number in ("one", "two"):
        (folder / "file").write_text(number)
        _git(folder, "add", "file")
        _git(folder, "commit", "--quiet", "-m", number)
    return folder


def _begin(tmp_path: Path, repository: Path, revision: str | None = None) -> subprocess.CompletedProcess[str]:
    named = {"R1FLOW_REPOSITORY": str(repository)} | ({"R1FLOW_REVISION": revision} if revision else {})
    environment = os.environ | {"R1FLOW_PROJECT": str(tmp_path / "home" / "project")} | named
    command = ["sh", str(DOCKER / "project.sh"), "cat", "file"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_container_begins_in_the_project_at_the_revision(tmp_path: Path, origin: Path) -> None:
    assert _begin(tmp_path, origin).stdout == "two"
    assert _begin(tmp_path, origin, _git(origin, "rev-parse", "HEAD~1")).stdout == "one"
    (origin / "file").write_text("three")
    _git(origin, "commit", "--quiet", "-am", "three")
    (tmp_path / "home/project/.git/index.lock").touch()  # as a killed one leaves it
    assert _begin(tmp_path, origin, "main").stdout == "three"


def test_a_container_goes_on_without_its_repository_only_where_it_has_been(tmp_path: Path, origin: Path) -> None:
    nothing = _begin(tmp_path, tmp_path / "none")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "nothing of it is here yet" in nothing.stderr
    assert _begin(tmp_path, origin).stdout == "two"
    again = _begin(tmp_path, tmp_path / "none")
    assert again.stdout == "two"
    assert "going on with" in again.stderr


def test_a_revision_that_is_nowhere_ends_the_container(tmp_path: Path, origin: Path) -> None:
    done = _begin(tmp_path, origin, "nowhere")
    assert done.returncode != 0
    assert done.stdout == ""


# ------------------------------------------------------------ train-node.sh


def test_a_node_joins_once_the_first_one_listens(tmp_path: Path) -> None:
    stage = tmp_path / "pipeline" / "__main__.py"
    stage.parent.mkdir()
    stage.write_text("import os, sys; print(sys.argv[1:], os.environ['R1FLOW_NODE_RANK'])")
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{first.getsockname()[1]}"
        environment = os.environ | {"R1FLOW_NODE_RANK": "1", "R1FLOW_RENDEZVOUS": where}
        environment |= {"R1FLOW_PROJECT": str(tmp_path), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        environment["PYTHONPATH"] = ""
        command = ["sh", str(DOCKER / "train-node.sh"), "reasoning_rl"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as node:
            time.sleep(1)
            assert node.poll() is None
            first.listen()
            assert node.communicate(timeout=60)[0] == "['reasoning_rl'] 1\n"
