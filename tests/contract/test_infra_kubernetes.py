"""The manifests as kustomize makes them: valid, closed, and speaking of the same things as the server and the flows."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.params import Serving
from pipeline.serving.limits import OPEN_PATHS

kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "kubernetes"
BIN = Path(sys.executable).parent
BUILDS = ("overlays/dev", "overlays/prod", "training")
POOLS = ("cpu", "gpu")
VERSIONS = ("1.31", "1.37")  # of Kubernetes: the oldest that has all of this, and the newest that has a schema here
CRDS = {"PodMonitor"}  # of operators: there is no schema for them here
Manifest = dict[str, Any]


@cache
def _build(folder: str) -> tuple[Manifest, ...]:
    program = shutil.which("kubectl", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("no kubectl")
    command = [program, "kustomize", str(FOLDER / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(YAML(typ="safe", pure=True).load_all(done.stdout))


def _job(pool: str) -> Manifest:
    """What a worker makes of its pool's template for a flow run without variables of its own."""
    workers = pytest.importorskip("prefect_kubernetes.worker")
    template = json.loads((FOLDER / "base" / f"pool-{pool}" / "job-template.json").read_text(encoding="utf-8"))
    values = {name: rule["default"] for name, rule in template["variables"]["properties"].items() if "default" in rule}
    values |= {"name": "run", "command": "prefect flow-run execute", "labels": {}, "annotations": {}}
    manifest: Manifest = _filled(template["job_configuration"]["job_manifest"], values)
    workers.KubernetesWorkerJobConfiguration(job_manifest=manifest, name="run", namespace=values["namespace"])
    for name in ("completions", "parallelism"):  # Prefect wants them in the pod, where Kubernetes does not look
        del manifest["spec"]["template"]["spec"][name]
    manifest["metadata"]["name"] = "run"
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    container |= {"args": container["args"].split(), "env": []}
    return manifest


def _filled(value: Any, values: dict[str, Any]) -> Any:
    match value:
        case dict():
            return {key: _filled(inner, values) for key, inner in value.items()}
        case list():
            return [_filled(inner, values) for inner in value]
        case str() if found := re.fullmatch(r"\{\{ (\w+) \}\}", value):
            return values.get(found[1])
        case str():
            return re.sub(r"\{\{ (\w+) \}\}", lambda found: str(values[found[1]]), value)
    return value


def _all() -> Iterator[Manifest]:
    for folder in BUILDS:
        yield from _build(folder)
    for pool in POOLS:
        yield _job(pool)


def _pods() -> Iterator[tuple[str, Manifest]]:
    """Name and pod template of whatever runs something."""
    for manifest in _all():
        if "template" in (spec := manifest.get("spec", {})):
            yield f"{manifest['kind']} {manifest['metadata'].get('name')}", spec["template"]


def _one(folder: str, kind: str, name: str) -> Manifest:
    [found] = [each for each in _build(folder) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(version: str) -> None:
    checked = [each for each in _all() if each["kind"] not in CRDS]
    assert len(checked) > 40
    for manifest in checked:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_no_pod_may_more_than_it_needs() -> None:
    for name, template in _pods():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is (spec["serviceAccountName"] == "r1flow-worker"), name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            tag = container["image"].rpartition(":")[2]
            assert re.match(r"\d+\.\d+\.\d+", tag), f"{name}: must have the tag of a release"


def test_secrets_are_named_and_never_held() -> None:
    kinds = {manifest["kind"] for manifest in _all()}
    assert "Secret" not in kinds
    for name, template in _pods():
        for variable in (each for container in template["spec"]["containers"] for each in container.get("env", [])):
            secret = re.search(r"PASSWORD|AUTH_STRING$|SECRET_ACCESS|(CLIENT|METRICS|API)_KEYS?$", variable["name"])
            if secret and "value" in variable:
                assert re.fullmatch(r"(\$\(\w+\),?)+", variable["value"]), f"{name}: {variable['name']}"


def test_what_pods_refer_to_is_there() -> None:
    made = {(each["kind"], each["metadata"]["name"]) for folder in BUILDS for each in _build(folder)}
    for name, template in _pods():
        spec = template["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in made
        if "priorityClassName" in spec:
            assert ("PriorityClass", spec["priorityClassName"]) in made
        mounts = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in spec["volumes"]}, name
        sources = [source for container in spec["containers"] for source in container.get("envFrom", [])]
        maps = [source["configMapRef"]["name"] for source in sources if "configMapRef" in source]
        maps += [volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume]
        claims = [volume["persistentVolumeClaim"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
        assert {("ConfigMap", each) for each in maps} <= made, name
        assert {("PersistentVolumeClaim", claim["claimName"]) for claim in claims} <= made


@pytest.mark.parametrize("folder", ["overlays/dev", "overlays/prod"])
def test_selectors_find_pods(folder: str) -> None:
    pods = [each["spec"]["template"] for each in _build(folder) if "template" in each.get("spec", {})]
    labels = [set(pod["metadata"]["labels"].items()) for pod in pods]
    selectors = []
    for each in _build(folder):
        match each["kind"]:
            case "Service":
                selectors.append(each["spec"]["selector"])
            case "PodDisruptionBudget" | "PodMonitor":
                selectors.append(each["spec"]["selector"]["matchLabels"])
            case "NetworkPolicy":
                selectors.append(each["spec"]["podSelector"].get("matchLabels", {}))
    assert len(selectors) >= 8
    for selector in selectors:
        assert any(set(selector.items()) <= own for own in labels), selector


def test_nothing_passes_the_network_but_what_is_named() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in _build("overlays/prod") if "Policy" in each["kind"]}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        for rule in [*policy.get("ingress", []), *policy.get("egress", [])]:
            assert rule["ports"], f"{name}: a rule without ports opens all of them"
            peers = rule.get("from", rule.get("to"))
            assert peers
            for block in (peer["ipBlock"] for peer in peers if "ipBlock" in peer):
                assert "169.254.0.0/16" in block["except"]


@pytest.mark.parametrize("pool", POOLS)
def test_a_run_never_has_two_pods(pool: str) -> None:
    for spec in (_job(pool)["spec"], _one("training", "Job", "r1flow-train")["spec"]):
        assert spec["backoffLimit"] == 0
        assert spec["podReplacementPolicy"] == "Failed"
        assert {rule["action"] for rule in spec["podFailurePolicy"]["rules"]} == {"FailJob"}
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert spec["ttlSecondsAfterFinished"]


def test_only_the_gpu_pools_jobs_take_a_gpu() -> None:
    limits = {pool: _job(pool)["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for pool in POOLS}
    assert "nvidia.com/gpu" not in limits["cpu"]
    assert limits["gpu"]["nvidia.com/gpu"] == 1


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_looks_at_its_own_pool(pool: str) -> None:
    template = _one("overlays/prod", "Deployment", f"worker-{pool}")["spec"]["template"]
    [container] = template["spec"]["containers"]
    assert "--pool=$(POOL)" in container["args"]
    assert container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['r1flow.io/pool']"
    assert template["metadata"]["labels"]["r1flow.io/pool"] == pool
    [volume] = [volume for volume in template["spec"]["volumes"] if "configMap" in volume]
    [templates] = [each for each in _build("overlays/prod") if each["metadata"]["name"] == volume["configMap"]["name"]]
    assert f'"r1flow.io/pool": "{pool}"' in templates["data"]["job-template.json"]


def test_the_model_is_watched_and_drained() -> None:
    spec = _one("overlays/prod", "Deployment", "model")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready"}
    assert set(probes.values()) <= OPEN_PATHS
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > pause + Serving().drain_seconds
    port = container["args"][container["args"].index("--port") + 1]
    assert [each["containerPort"] for each in container["ports"]] == [int(port)]


def test_nodes_of_a_stage_meet_at_the_first_one() -> None:
    job, service = _one("training", "Job", "r1flow-train"), _one("training", "Service", "r1flow-train")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] > 1
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    [port] = service["spec"]["ports"]
    environment = {each["name"]: each for each in spec["template"]["spec"]["containers"][0]["env"]}
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}:{port['port']}"
    assert environment["R1FLOW_RENDEZVOUS"]["value"] == first
    rank = environment["R1FLOW_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert rank == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
