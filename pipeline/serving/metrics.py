"""What /metrics tells, in Prometheus's form."""

from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.promotion.ledger import Kind
from pipeline.serving.engines import Answering

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)


class _State(Collector):
    """What the engines are at the moment: read when it is asked for."""

    def __init__(self, answering: Answering, name: str) -> None:
        self._answering, self._name = answering, name

    def collect(self) -> Iterable[Metric]:
        engine = self._answering.current
        samples = sum(engine.samples for engine in self._answering.engines)
        slots = sum(engine.options.slots for engine in self._answering.engines)
        gauge = GaugeMetricFamily
        yield gauge("r1flow_ready", "1 where requests are answered", value=bool(engine and engine.ready))
        yield gauge("r1flow_samples_running", "completions being written", value=min(samples, slots))
        yield gauge("r1flow_samples_waiting", "completions waiting for a slot", value=max(0, samples - slots))
        yield gauge("r1flow_engines", "loaded models", value=len(self._answering.engines))
        restarts = sum(engine.restarts for engine in self._answering.engines)
        yield gauge("r1flow_engine_restarts", "times that an engine's process was started again", value=restarts)
        if engine is None or engine.facts is None:
            return
        facts = engine.facts
        model = {"name": self._name, "version": facts.digest}
        yield InfoMetricFamily("r1flow_model", "the model that answers new requests", value=model)
        yield gauge("r1flow_parameters", "of the model", value=facts.parameters)
        share = facts.activated / facts.parameters
        yield gauge("r1flow_activated_share", "of the parameters that act on a token", value=share)
        if engine.experts is not None:
            peak = gauge("r1flow_expert_load_peak", "tokens of the busiest expert over the mean", labels=["layer"])
            used = gauge("r1flow_experts_used_share", "of the experts that any token chose", labels=["layer"])
            tokens = gauge(
                "r1flow_expert_tokens", "that chose an expert, of ended completions", labels=["layer", "expert"]
            )
            for layer, load in enumerate(engine.experts):
                peak.add_metric([str(layer)], max(load) * len(load) / max(1, sum(load)))
                used.add_metric([str(layer)], sum(count > 0 for count in load) / len(load))
                for expert, count in enumerate(load):
                    tokens.add_metric([str(layer), str(expert)], count)
            yield from (peak, used, tokens)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self, answering: Answering, name: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(answering, name))
        to = self._registry
        self.requests = Counter("r1flow_requests", "answered, by path and status", ["path", "status"], registry=to)
        self.gone = Counter("r1flow_requests_abandoned", "whose client went before the end", registry=to)
        self.prompt = Counter("r1flow_prompt_tokens", "read", registry=to)
        self.written = Counter("r1flow_completion_tokens", "written, thinking included", registry=to)
        self.thinking = Counter("r1flow_reasoning_tokens", "written as thinking", registry=to)
        self.first = Histogram("r1flow_time_to_first_token_seconds", "of a request", buckets=SECONDS, registry=to)
        self.latency = Histogram("r1flow_request_seconds", "of a whole request", buckets=SECONDS, registry=to)
        self.promotions = Counter("r1flow_promotions", "of champions, by how they ended", ["kind"], registry=to)
        for kind in get_args(Kind):  # from 0 on: of a counter that begins at 1 Prometheus does not see the first step
            self.promotions.labels(kind)
        self.shadow = Histogram(
            "r1flow_shadow_seconds", "of requests that a new model shadowed", ["outcome"], buckets=SECONDS, registry=to
        )
        self.length = Histogram("r1flow_completion_length_tokens", "of a request", buckets=TOKENS, registry=to)

    def page(self) -> bytes:
        return generate_latest(self._registry)
