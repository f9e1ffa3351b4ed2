"""Stages on other machines: a Prefect server, an S3 server, and two workers in clones of their own, all real."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import boto3
import psutil
import pytest
from moto.server import ThreadedMotoServer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State as PrefectState
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from prefect.utilities.callables import parameter_schema

from flows.on_workers import recipe_on_workers
from flows.stage import stage
from flows.travel import read_lock
from tests.integration.prefect_server import PrefectServer
from tests.processes import unless_gone
from tests.project import FlowProject

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 420.0  # seconds, on a busy machine
PULL = [{"flows.checkout.checkout": {}}]


class Site:
    """A project, its servers, and the workers that were started."""

    def __init__(self, folder: Path, database: Path, s3: str) -> None:
        for name in ("origin", "prefect"):
            (folder / name).mkdir()
        self.project, self.folder = FlowProject(folder / "origin"), folder
        self.server = PrefectServer(folder / "prefect", database)
        self.environment = {
            **self.server.environment,
            "AWS_ENDPOINT_URL": s3,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PLAYED": str(self.project.root / "played"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_worker(self, name: str, pool: str) -> None:
        """A worker for one flow run at a time in a clone of its own."""
        clone = self.folder / name
        subprocess.run(["git", "clone", "--quiet", self.project.root, clone], check=True)
        command = ["prefect", "worker", "start", "--pool", pool, "--name", name, "--limit", "1"]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.folder,
                env={**self.environment, "R1FLOW_PROJECT": str(clone)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        for name, process in self.processes.items():
            for below in self.below(name) if process.poll() is None else []:
                below.kill()
            process.kill()
            process.wait()
        self.server.stop()

    def begin(self, client: SyncPrefectClient, **parameters: object) -> UUID:
        deployment = client.read_deployment_by_name("recipe/recipe")
        return client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def end(self, client: SyncPrefectClient, run: UUID) -> PrefectState:
        """The state in which a flow run ends."""
        return until(lambda: (state := client.read_flow_run(run).state) and state.is_final() and state, self.logs)

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in self.folder.rglob("*.log"))

    def below(self, name: str) -> list[psutil.Process]:
        return psutil.Process(self.processes[name].pid).children(recursive=True)


def until(look: Callable[[], Any], logs: Callable[[], str]) -> Any:
    """What `look` returns once it is something."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, logs()
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def site(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    site = Site(tmp_path_factory.mktemp("site"), prefect_database, f"http://{host}:{port}")
    try:
        boto3.client(
            "s3",
            endpoint_url=site.environment["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        ).create_bucket(Bucket="dvc")
        prepare(site)
        yield site
    finally:
        site.stop()
        moto.stop()


def prepare(site: Site) -> None:
    """The project knows its remote and its workers; the server knows the flows."""
    root = site.project.root
    with (root / ".dvc" / "config").open("a") as config:
        config.write("['remote \"team\"']\n    url = s3://dvc/project\n")
    with (root / "params.yaml").open("a") as params:
        params.write(f"tracking: {{uri: 'sqlite:///{site.folder}/mlflow.db'}}\nworkers: {{remote: team}}\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run([*git, "commit", "--quiet", "--all", "--message=workers"], cwd=root, check=True)
    with temporary_settings({PREFECT_API_URL: site.server.url}), get_client(sync_client=True) as client:
        for flow, pool in ((stage, "cpu"), (recipe_on_workers, "recipe")):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            client.create_deployment(
                flow_id=client.create_flow(flow),
                name=pool,
                work_pool_name=pool,
                entrypoint=f"{flow.fn.__module__}.{flow.fn.__name__}",
                pull_steps=PULL,
                parameter_openapi_schema=parameter_schema(flow).model_dump(),
            )
    for name, pool in (("recipes", "recipe"), ("one", "cpu"), ("two", "cpu")):
        site.start_worker(name, pool)


@pytest.fixture
def client(site: Site) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: site.server.url}), get_client(sync_client=True) as client:
        yield client


def test_two_workers_make_what_dvc_repro_makes(site: Site, client: SyncPrefectClient, tmp_path: Path) -> None:
    # Two at once, each waits for the other, so they are on two machines; what may pass is tried again.
    site.project.behave(first="meet", aside="meet", last="crash once")
    recipe = site.begin(client, branch="results")
    state = site.end(client, recipe)
    assert state.is_completed(), f"{state.message}\n{site.logs()}"
    sent = [run for run in client.read_flow_runs() if run.parameters.get("recipe") == str(recipe)]
    # The last one goes to a flow run that has just done its stage, until that fails.
    names = sorted(run.name for run in sent)
    assert names in (["aside", "first, last", "last"], ["aside, last", "first", "last"])
    calls = site.project.calls()
    assert sorted(calls[:2]) == ["aside", "first"]
    assert calls[2:] == ["last", "last"]

    subprocess.run(["git", "clone", "--quiet", "--branch", "results", site.project.root, tmp_path / "here"], check=True)
    locked = read_lock(tmp_path / "here")
    subprocess.run(["git", "clone", "--quiet", site.project.root, tmp_path / "alone"], check=True)
    repro = [sys.executable, "-m", "dvc", "repro", "--quiet"]
    site.project.behave()
    subprocess.run(repro, cwd=tmp_path / "alone", env=site.environment, check=True)
    assert read_lock(tmp_path / "alone") == locked

    # Whoever has the branch has everything.
    pull = [sys.executable, "-m", "dvc", "pull", "--quiet", "--remote", "team"]
    subprocess.run(pull, cwd=tmp_path / "here", env=site.environment, check=True)
    assert (tmp_path / "here" / "artifacts" / "last" / "out").read_text() == "last"
    for worker in ("recipes", "one", "two"):
        assert list((site.folder / worker / "runs" / "checkouts").glob("*-*")) == []


def test_what_was_done_anywhere_is_not_done_again_and_a_failed_gate_is_final(
    site: Site, client: SyncPrefectClient
) -> None:
    site.project.behave(last="gate")
    before = len(site.project.calls())
    state = site.end(client, site.begin(client, until="last", overrides={"evaluation.samples": 2}))
    assert state.is_failed()
    assert "last: share_quarantined: 0.4 is above 0.2" in str(state.message)
    assert site.project.calls()[before:] == ["last"]


def test_a_killed_workers_stage_goes_to_another_and_cancelling_leaves_nothing(
    site: Site, client: SyncPrefectClient
) -> None:
    site.project.behave(first="hang")
    hangs, before = site.project.root / "played" / "hangs", len(site.project.calls())
    hangs.unlink(missing_ok=True)
    recipe = site.begin(client, until="first", overrides={"seed": 3})
    until(hangs.exists, site.logs)
    hangs.unlink()
    lost = next(name for name in ("one", "two") if runs_a_stage(site.below(name)))
    processes = site.below(lost)
    site.processes[lost].kill()
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    until(hangs.exists, site.logs)
    assert site.project.calls()[before:] == ["first", "first"]

    processes = [process for name in ("recipes", "one", "two") if name != lost for process in site.below(name)]
    assert runs_a_stage(processes)
    client.set_flow_run_state(recipe, Cancelling())
    assert psutil.wait_procs(processes, timeout=30)[1] == []
    assert site.end(client, recipe).is_cancelled()


def runs_a_stage(processes: list[psutil.Process]) -> bool:
    return any("stage.py" in unless_gone(process.cmdline, []) for process in processes)
