"""What prefect.yaml and the set-up make of a plain Prefect server, and flows run from there as a worker runs them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import chat
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer
from tests.integration.prefect_server import PrefectServer
from tests.unit.serving.champions import DENSE, MODEL, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
DVC_CONFIG = "[core]\n    analytics = false\n    site_cache_dir = .dvc/tmp/site\n"
OPERATION = "operation: {new_problems: 20, approval: {by: run, hours: 1}}\n"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def server(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    running = PrefectServer(tmp_path_factory.mktemp("prefect"), prefect_database)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A worker's clone: this code, a registry, no models in it yet."""
    made = Project(tmp_path_factory.mktemp("clone"))
    for part in ("flows", "pipeline"):
        shutil.copytree(ROOT / part, made.root / part, ignore=shutil.ignore_patterns("*.pyc*", ".*"))
    for file in ("prefect.yaml", "dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / file, made.root / file)
    with (made.root / "params.yaml").open("a") as params:
        params.write(OPERATION)
    (made.root / ".dvc").mkdir()
    (made.root / ".dvc" / "config").write_text(DVC_CONFIG)
    git(made.root, "init", "--quiet")
    git(made.root, "add", "--all")
    git(made.root, "commit", "--quiet", "--message=start")
    return made


@pytest.fixture(scope="module")
def deployed(server: PrefectServer, project: Project) -> dict[str, Any]:
    """FLOW/NAME → deployment."""
    server.run("flows.setup_server", cwd=project.root)
    server.run("prefect", "--no-prompt", "deploy", "--all", cwd=project.root)
    return deployments(server)


def deployments(server: PrefectServer) -> dict[str, Any]:
    flows = {flow["id"]: flow["name"] for flow in server.post("/flows/filter")}
    return {f"{flows[one['flow_id']]}/{one['name']}": one for one in server.post("/deployments/filter")}


def test_the_deployments_are_those_that_the_guide_names(deployed: dict[str, Any]) -> None:
    where = {name: (one["work_pool_name"], one["work_queue_name"]) for name, one in deployed.items()}
    assert where == {
        "recipe/recipe": ("cpu", "default"),
        "stage/cpu": ("cpu", "default"),
        "stage/gpu": ("gpu", "default"),
        "curate/curate": ("cpu", "daily"),
        "evaluate/evaluate": ("cpu", "daily"),
        "promote/promote": ("cpu", "urgent"),
        "follow/follow": ("cpu", "urgent"),
    }
    for one in deployed.values():
        assert one["description"]
        assert one["tags"] == ["r1flow"]
        assert one["enforce_parameter_schema"]
        assert one["pull_steps"] == [{"flows.checkout.checkout": {"requires": []}}]
        assert one["job_variables"]["env"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}


def test_what_has_a_schedule_has_its_next_runs(server: PrefectServer, deployed: dict[str, Any]) -> None:
    scheduled = {deployed[f"{name}/{name}"]["id"] for name in ("recipe", "curate", "evaluate")}
    due = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    server.wait(lambda: scheduled == {run["deployment_id"] for run in server.post("/flow_runs/filter", flow_runs=due)})


def test_schedules_and_limits(deployed: dict[str, Any]) -> None:
    crons = {name: [entry["schedule"]["cron"] for entry in one["schedules"]] for name, one in deployed.items()}
    assert {name: cron for name, cron in crons.items() if cron} == {
        "recipe/recipe": ["0 3 * * 6"],
        "curate/curate": ["0 5 * * *"],
        "evaluate/evaluate": ["0 1 * * *"],
    }
    limited = {
        name: (one["global_concurrency_limit"]["limit"], one["concurrency_options"]["collision_strategy"])
        for name, one in deployed.items()
        if one["global_concurrency_limit"]
    }
    assert limited == {
        "recipe/recipe": (1, "ENQUEUE"),
        "promote/promote": (1, "ENQUEUE"),
        "curate/curate": (1, "CANCEL_NEW"),
        "evaluate/evaluate": (1, "CANCEL_NEW"),
    }


def test_parameters_are_checked_before_a_run_is_made(server: PrefectServer, deployed: dict[str, Any]) -> None:
    schema = deployed["recipe/recipe"]["parameter_openapi_schema"]
    assert {"commit", "until", "overrides"} <= set(schema["properties"])
    place = f"/deployments/{deployed['promote/promote']['id']}/create_flow_run"
    with pytest.raises(Exception, match="409"):
        server.post(place, parameters={"name": MODEL, "version": "the best"})
    place = f"/deployments/{deployed['follow/follow']['id']}/create_flow_run"
    with pytest.raises(Exception, match="409"):
        server.post(place, parameters={"hours": 0})


def everything(server: PrefectServer) -> dict[str, Any]:
    pools = {name: server.get(f"/work_pools/{name}") for name in ("cpu", "gpu")}
    for pool in pools.values():
        pool.pop("status")
    return {
        "pools": pools,
        "queues": [
            {key: queue[key] for key in ("name", "priority", "description", "id")}
            for name in pools
            for queue in server.post(f"/work_pools/{name}/queues/filter")
        ],
        "automations": server.post("/automations/filter"),
        "limits": [
            {key: limit[key] for key in ("name", "limit", "active")}
            for limit in server.post("/v2/concurrency_limits/filter")
        ],
        "deployments": {name: one["id"] for name, one in deployments(server).items()},
    }


def test_the_set_up_done_again_changes_nothing(
    server: PrefectServer, project: Project, deployed: dict[str, Any]
) -> None:
    before = everything(server)
    server.run("flows.setup_server", cwd=project.root)
    server.run("prefect", "--no-prompt", "deploy", "--name", "promote", cwd=project.root)
    assert everything(server) == before
    assert {queue["name"]: queue["priority"] for queue in before["queues"]} == {"urgent": 1, "default": 2, "daily": 3}
    assert before["pools"]["gpu"]["concurrency_limit"] == 1
    actions = {one["name"]: one["actions"][0]["type"] for one in before["automations"]}
    assert actions == {
        "r1flow: crash silent runs": "change-flow-run-state",
        "r1flow: cancel late daily runs": "cancel-flow-run",
        "r1flow: end unanswered approvals": "change-flow-run-state",
    }
    server.run("flows.setup_server", "--gpus", "4", cwd=project.root)
    assert server.get("/work_pools/gpu")["concurrency_limit"] == 4
    assert server.get("/v2/concurrency_limits/gpu")["limit"] == 4


class Runs:
    """Flow runs of deployments, done as a worker's process does them."""

    def __init__(self, server: PrefectServer, project: Project, deployed: dict[str, Any]) -> None:
        self.server, self.project, self._deployed = server, project, deployed

    def start(self, deployment: str, **parameters: Any) -> str:
        place = f"/deployments/{self._deployed[deployment]['id']}/create_flow_run"
        return self.server.post(place, parameters=parameters)["id"]

    def execute(self, flow_run: str, **variables: str) -> dict[str, Any]:
        """Its state at the end."""
        # The clone's working folder is elsewhere, as a worker's is; the code comes from the pull step's folder.
        folder = self.project.root.parent
        variables = {"R1FLOW_PROJECT": str(self.project.root), "PYTHONPATH": str(self.project.root), **variables}
        self.server.run("prefect", "flow-run", "execute", flow_run, cwd=folder, variables=variables)
        return self.server.state(flow_run)

    def resume(self, flow_run: str, **answer: Any) -> None:
        assert self.server.post(f"/flow_runs/{flow_run}/resume", run_input=answer)["status"] == "ACCEPT"

    def artifact(self, key: str) -> str:
        data = self.server.get(f"/artifacts/{key}/latest")["data"]
        return data if isinstance(data, str) else json.dumps(data)


@pytest.fixture(scope="module")
def runs(server: PrefectServer, project: Project, deployed: dict[str, Any]) -> Runs:
    return Runs(server, project, deployed)


@pytest.fixture(scope="module")
def versions(project: Project) -> tuple[int, int]:
    """Of the champion, and of a candidate."""
    return release(project, 0), release(project, 1)


def release(project: Project, seed: int) -> int:
    """The version of a model that knows nothing."""
    model = Decoder(ModelConfig.from_hf({**DENSE, "vocab_size": len(character_tokenizer(chat.CHAT_TEMPLATE))}))
    torch.manual_seed(seed)
    model.init_weights(seed)
    return project.release(model).number


def champion(project: Project) -> int:
    version = project.aliases.champion(MODEL)
    assert version is not None
    return version.number


def test_who_does_not_answer_leaves_a_candidate(runs: Runs, versions: tuple[int, int]) -> None:
    asked = runs.start("follow/follow", hours=1 / 3600)
    runs.execute(asked)  # Suspended, and perhaps more than that by now
    runs.server.wait(lambda: runs.server.state(asked)["name"] == "Expired")
    assert "stays a candidate" in runs.server.state(asked)["message"]
    assert champion(runs.project) == versions[0]


def test_a_no_leaves_a_candidate(runs: Runs, versions: tuple[int, int]) -> None:
    asked = runs.start("follow/follow")
    assert runs.execute(asked)["name"] == "Suspended"
    runs.resume(asked, version=versions[1], promote=False, why="too young")
    state = runs.execute(asked)
    assert (state["name"], state["message"]) == ("Declined", f"Version {versions[1]} stays a candidate: too young")
    assert champion(runs.project) == versions[0]


def test_a_yes_promotes_what_was_asked_about_and_a_person_goes_back(runs: Runs, versions: tuple[int, int]) -> None:
    asked = runs.start("follow/follow")  # about the newest
    assert runs.execute(asked)["name"] == "Suspended"
    assert list((runs.project.root / "runs" / "checkouts").glob("*-*")) == []  # nothing is held while it waits
    shown = runs.artifact("approval")
    assert f"is version {versions[1]} to be champion?" in shown
    assert "50.0 %" in shown
    newer = release(runs.project, 2)
    runs.project.aliases.move(runs.project.aliases.version(MODEL, newer))
    runs.resume(asked, why="better")
    assert runs.execute(asked)["type"] == "COMPLETED"
    assert champion(runs.project) == versions[1]
    entry = runs.project.ledger()[-1].event
    assert (entry.kind, entry.why) == ("promoted", "better")

    back = runs.start("promote/promote", name=MODEL, version=versions[0], why="back")
    assert runs.execute(back)["type"] == "COMPLETED"
    assert champion(runs.project) == versions[0]


def rows(count: int) -> str:
    return "".join(
        json.dumps({"prompt": f"Add {n} to {n * n + 7} and say the sum.", "gold": str(n + n * n + 7)}) + "\n"
        for n in range(count)
    )


def test_new_data_is_curated_noted_and_starts_a_recipe(runs: Runs, deployed: dict[str, Any], tmp_path: Path) -> None:
    root, data = runs.project.root, tmp_path / "data"
    data.mkdir()
    params = root / "params.yaml"
    source = {
        "kind": "jsonl",
        "name": "sums",
        "path": "sums.jsonl",
        "task": "sum",
        "language": "en",
        "digest": "0" * 64,
    }
    text = params.read_text()
    before = text[text.index("curation:") : text.index("base:")]
    gates = {"min_problems": 20, "max_length_drift": 9.0}
    params.write_text(text.replace(before, f"curation: {json.dumps({'sources': [source], 'gates': gates})}\n"))
    git(root, "commit", "--quiet", "--all", "--message=sums")

    def day(count: int) -> list[dict[str, Any]]:
        """Curate so many rows: the recipes that there are afterwards."""
        (data / "sums.jsonl").write_text(rows(count))
        state = runs.execute(runs.start("curate/curate"), R1FLOW_DATA=str(data))
        assert state["type"] == "COMPLETED", state["message"]
        wanted = {"deployments": {"id": {"any_": [deployed["recipe/recipe"]["id"]]}}}
        found = runs.server.post("/flow_runs/filter", **wanted)
        return [run for run in found if not run["auto_scheduled"]]

    [begun] = day(60)
    [told] = begun["parameters"]["overrides"]["curation.sources"]
    assert told["path"] == "sums.jsonl"
    assert begun["parameters"]["commit"] == git(root, "rev-parse", "HEAD")
    assert told["digest"] != source["digest"]
    assert "No set was accepted before" in runs.artifact("data")
    assert [run["id"] for run in day(70)] == [begun["id"]]  # ten new ones are too few
    assert "10 of them" in runs.artifact("data")
    assert git(root, "status", "--porcelain", "--untracked-files=no") == ""
