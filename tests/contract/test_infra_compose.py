"""compose.yaml: valid as Docker Compose reads it, with nothing in it that the programs do not know."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import Settings

from pipeline.job import read_yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
FILE = INFRA / "compose.yaml"
WRITTEN: dict[str, Any] = read_yaml(FILE)
BIN = Path(sys.executable).parent
EXAMPLE = (INFRA / "env.example").read_text(encoding="utf-8")
REQUIRED = re.findall(r"^(\w+)=$", EXAMPLE, re.M)
OPTIONAL = dict(re.findall(r"^#(\w+)=(.*)$", EXAMPLE, re.M))
LOCK = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
ONCE = {"buckets"}  # services that end
SECRET = re.compile(r"PASSWORD|SECRET|KEYS?$|AUTH_STRING")
NOT_SECRET = {"AWS_ACCESS_KEY_ID"}


def _compose(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = shutil.which("docker-compose", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("no docker-compose")
    command = [program, "--file", str(FILE), "--env-file", os.devnull, "--profile", "gpu", "config", "--format", "json"]
    surroundings = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | environment
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=60)


@cache
def _rendered() -> dict[str, Any]:
    done = _compose({name: f"planted-{name}" for name in REQUIRED})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _services() -> dict[str, Any]:
    return _rendered()["services"]  # type: ignore[no-any-return]


def _environments() -> Iterator[tuple[str, str, str]]:
    """Service, name and value as written, for every variable."""
    for service, definition in WRITTEN["services"].items():
        for name, value in definition.get("environment", {}).items():
            yield service, name, str(value)


def test_compose_accepts_it_and_asks_for_what_is_missing() -> None:
    assert _services()
    for missing in ("POSTGRES_PASSWORD", "METRICS_KEY"):
        done = _compose({name: "x" for name in REQUIRED if name != missing})
        assert done.returncode != 0
        assert f"{missing} is missing a value: set it in infra/.env" in done.stderr


def test_env_example_names_every_variable_and_no_other() -> None:
    named = re.findall(r"(?<!\$)\$\{(\w+)(:[?-])?", FILE.read_text(encoding="utf-8"))
    by_kind = {kind: {name for name, found in named if found == kind} for kind in (":?", ":-", "")}
    secrets = {secret["environment"] for secret in WRITTEN["secrets"].values()}
    assert by_kind[""] == set()
    assert by_kind[":?"] | secrets == set(REQUIRED)
    assert by_kind[":-"] == set(OPTIONAL)


def test_secrets_are_never_written_down() -> None:
    for service, name, value in _environments():
        if SECRET.search(name) and name not in NOT_SECRET and not value.startswith("/run/secrets/"):
            assert ":?" in value, f"{service}: {name}"
    assert "/infra/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert all(not value for value in re.findall(r"^\w+=(.*)$", EXAMPLE, re.M))


def test_no_command_line_shows_a_secret() -> None:
    for name, service in _services().items():
        shown = " ".join([*(service["command"] or []), *(service.get("healthcheck", {}).get("test", []))])
        assert "planted-" not in shown, name


def test_images_have_the_versions_of_the_lock() -> None:
    for name, service in _services().items():
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), f"{name}: must have the tag of a release"
        if service["image"].startswith("r1flow-"):
            assert tag.startswith(VERSION)
            assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert _services()["prefect"]["image"].startswith(f"prefecthq/prefect:{LOCK['prefect']}-")


def test_ports_are_open_on_this_machine_only() -> None:
    ports = [port for service in _services().values() for port in service.get("ports", [])]
    assert len(ports) >= 6
    assert all(port["host_ip"] == "127.0.0.1" for port in ports)
    networks = _rendered()["networks"]
    assert networks["database"]["internal"]
    within = {name for name, service in _services().items() if "database" in service["networks"]}
    assert within == {"postgres", "prefect", "mlflow"}
    assert "ports" not in _services()["postgres"]


@pytest.mark.parametrize("name", WRITTEN["services"])
def test_a_service_comes_up_again_is_watched_and_bounded(name: str) -> None:
    service = _services()[name]
    if name in ONCE:
        assert service["restart"] == "no"
        return
    assert service["restart"] == "unless-stopped"
    watched = "healthcheck" in service or "HEALTHCHECK" in (ROOT / service["build"]["dockerfile"]).read_text("utf-8")
    assert watched
    limits = service["deploy"]["resources"]["limits"]
    assert limits["cpus"]
    assert limits["memory"]
    assert "no-new-privileges:true" in service["security_opt"]


def test_nobody_waits_for_what_does_not_say_that_it_is_well() -> None:
    for service in _services().values():
        for other, wait in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert wait["condition"] == expected


def test_our_images_write_nowhere_but_in_their_volume() -> None:
    ours = {name for name, service in _services().items() if "target" in service.get("build", {})}
    assert ours == {"worker-cpu", "worker-gpu", "model"}
    for name in ours:
        service = _services()[name]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        volumes = {volume["target"]: volume for volume in service["volumes"]}
        assert set(volumes) == {"/origin", "/srv/r1flow"}
        assert volumes["/origin"]["read_only"]
    [gpu] = _services()["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["capabilities"] == ["gpu"]


def test_files_that_are_mounted_are_there() -> None:
    for config in _rendered()["configs"].values():
        assert Path(config["file"]).is_file()
    for service in _services().values():
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or Path(volume["source"]).is_dir()


def test_variables_are_known_to_those_who_read_them() -> None:
    spec = find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    mlflows = Path(spec.origin).with_name("environment_variables.py").read_text(encoding="utf-8")
    prefects = json.dumps(Settings.model_json_schema())
    code = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "flows").rglob("*.py"), *(INFRA / "docker").glob("*.sh")]
    ours = "".join(path.read_text(encoding="utf-8") for path in code)
    for service, name, _ in _environments():
        if name.startswith("PREFECT_"):
            assert f'"{name}"' in prefects, f"{service}: {name}"
        elif name.startswith("MLFLOW_") and service == "mlflow":
            assert f"{name} = " in mlflows, f"{service}: {name}"
        elif name.startswith("R1FLOW_"):
            assert name in ours, f"{service}: {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefect", "mlflow", "worker-gpu", "model"])
def test_options_are_known_to_the_programs(name: str) -> None:
    command: list[str] = _services()[name]["command"]
    words = [word for word in command if not word.startswith("-")]
    program = words[: {"prefect": 3, "mlflow": 2, "r1flow": 2}[words[0]]]
    shown = subprocess.run(
        [str(BIN / program[0]), *program[1:], "--help"],
        env=os.environ | {"COLUMNS": "200", "TERMINAL_WIDTH": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    for option in {word.partition("=")[0] for word in command if word.startswith("--")}:
        assert option in shown
