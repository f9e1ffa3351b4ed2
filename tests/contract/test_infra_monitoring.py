"""Prometheus, its rules and the dashboard ask for what the server tells."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.job import read_yaml
from pipeline.params import Serving
from pipeline.serving.engines import Answering, Engine, Facts
from pipeline.serving.metrics import Metrics

promql_parser = pytest.importorskip("promql_parser")

INFRA = Path(__file__).parents[2] / "infra"
CONFIG: dict[str, Any] = read_yaml(INFRA / "prometheus" / "prometheus.yaml")
RULES: list[dict[str, Any]] = read_yaml(INFRA / "prometheus" / "rules.yaml")["groups"][0]["rules"]
COMPOSE: dict[str, Any] = read_yaml(INFRA / "compose.yaml")
DASHBOARD: dict[str, Any] = json.loads((INFRA / "grafana/dashboards/r1flow.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OTHERS = {"up", "SeaweedFS_volumeServer_storage_io_error_total"}  # Prometheus's own; the S3 server's, as 4.48 names it

BY_PROMETHEUS = {"job", "instance", "namespace", "pod"}  # labels that are none of the server's own


@cache
def _told() -> dict[str, set[str]]:
    """Every sample of a server that has a model with experts and has had each kind of event: name and its labels."""
    answering = Answering(Serving(), threads=1)
    engine = Engine(Path("model"), Serving(), 1, ready=True)
    engine.facts = Facts(digest="0" * 64, parameters=10, activated=1, max_length=16, mapped=0.0)
    engine.experts = [[1, 2], [3, 4]]
    answering.engines.append(engine)
    answering.switch(engine)
    metrics = Metrics(answering, "model")
    metrics.requests.labels("/v1/completions", "200").inc()
    metrics.shadow.labels("answered").observe(1)
    families = text_string_to_metric_families(metrics.page().decode())
    samples: dict[str, set[str]] = {}
    for sample in (sample for family in families for sample in family.samples):
        samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def _asked() -> Iterator[tuple[str, str]]:
    """Where, and the expression."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    adapter = read_yaml(INFRA / "kubernetes/overlays/prod/prometheus-adapter.yaml")["rules"]["custom"]
    for rule in adapter:
        series, _, labels = rule["seriesQuery"].partition("{")
        query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        yield "prometheus-adapter", query.replace("<<.LabelMatchers>>", labels.rstrip("}"))


def _selectors(node: Any) -> Iterator[tuple[str, set[str]]]:
    """Each metric of a parsed expression and the labels that it is chosen by."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name, {matcher.name for matcher in node.matchers.matchers}
    inner = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
    for each in [*inner, *getattr(node, "args", [])]:
        if each is not None:
            yield from _selectors(each)


@pytest.mark.parametrize(("where", "expression"), [pytest.param(*asked, id=asked[0]) for asked in _asked()])
def test_every_expression_is_valid_and_asks_for_what_is_told(where: str, expression: str) -> None:
    selectors = list(_selectors(promql_parser.parse(expression)))
    assert selectors
    for name, labels in selectors:
        assert name in OTHERS or name in _told(), f"{where}: no metric {name}"
        if name in _told():
            assert labels <= _told()[name] | BY_PROMETHEUS, f"{where}: {name} has not all of the labels {labels}"


def test_a_champion_that_is_refused_is_counted_from_nought() -> None:
    """A counter that appears with its first event, at 1, has not risen for Prometheus: the alert would not come."""
    answering = Answering(Serving(), threads=1)
    told = Metrics(answering, "model").page().decode()
    for kind in ("promoted", "refused", "rolled back"):
        assert f'r1flow_promotions_total{{kind="{kind}"}} 0.0' in told


def test_rules_have_a_severity_and_say_what_is_wrong() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    tested = (INFRA / "prometheus/rules.test.yaml").read_text(encoding="utf-8")
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert f'alertname="{rule["alert"]}"' in tested, "each alert is shown firing"


def test_prometheus_asks_services_of_compose_with_the_key() -> None:
    for job in CONFIG["scrape_configs"]:
        for target in (target for group in job["static_configs"] for target in group["targets"]):
            host, _, port = target.partition(":")
            service = COMPOSE["services"]["prometheus" if host == "127.0.0.1" else host]
            words = " ".join([*service["command"], *service.get("ports", [])])
            assert port in words, target
            assert "services" in service["networks"] or service["networks"] == ["services"]
    [model] = [job for job in CONFIG["scrape_configs"] if job["job_name"] == "r1flow"]
    assert model["authorization"] == {"credentials_file": "/run/secrets/metrics_key"}
    assert "metrics_key" in COMPOSE["services"]["prometheus"]["secrets"]
    assert "${METRICS_KEY" in COMPOSE["services"]["model"]["environment"]["R1FLOW_API_KEYS"]


@pytest.mark.parametrize(
    "command", ["check config --syntax-only prometheus.yaml", "check rules rules.yaml", "test rules rules.test.yaml"]
)
def test_promtool_accepts(command: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool: it comes with Prometheus")
    folder = INFRA / "prometheus"
    done = subprocess.run([program, *command.split()], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_reads_the_provisioned_source_and_its_panels_do_not_overlap() -> None:
    [source] = read_yaml(INFRA / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = read_yaml(INFRA / "grafana/provisioning/dashboards/files.yaml")["providers"]
    mounts = [volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert ["./grafana/dashboards", provider["options"]["path"]] in mounts
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in PANELS:
        assert panel["description"]
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": source["uid"]}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
