"""The plan: measure what is not known of this machine yet, choose, write runs/plan/plan.json, tell the tracking store.

A measurement is kept by the release's digest, the machine, the load and the code that serves, so an unchanged release
is not measured again. The figures of one plan may thus come from different times, and nobody can tell whether the
machine had other work then: `r1flow plan --again` measures everything anew.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import GateFailedError, InputError
from pipeline.evaluation.choice import choose as choose_problems
from pipeline.evaluation.intervals import difference_interval, mean_interval
from pipeline.files import digest, write_json
from pipeline.gauges import device
from pipeline.job import PARAMS_FILE
from pipeline.params import Params, load_params
from pipeline.planning.choose import MIB, Candidate, choose, misses, refusal
from pipeline.planning.measure import Load, Measured, Question, Way, measure
from pipeline.planning.record import NAME, plan_path, read_plan
from pipeline.planning.table import rows
from pipeline.records import Problem, read_table
from pipeline.release.record import STAGE, Record, Release, read_record, release_folder
from pipeline.rewards.versions import verifier_versions
from pipeline.tracking import Description, Tracker

SERVING = ("model", "generation", "planning")  # packages whose code a speed depends on

Measure = Callable[[Path, Way, Load], Measured]


def make_plan(root: Path, *, again: bool = False, measured_by: Measure = measure) -> dict[str, Any]:
    """Write the plan of the project at `root` and return it.

    Raises InputError where there are no releases, GateFailedError where none of them meets the target; the plan is
    written all the same.
    """
    params, record = load_params(root / PARAMS_FILE), read_record(root)
    load = _load(root, params)
    if params.machine.threads is not None:  # before the processes that measure begin
        os.environ["OMP_NUM_THREADS"] = str(params.machine.threads)
    if again:
        shutil.rmtree(plan_path(root).parent / "measured", ignore_errors=True)
    found, fresh = {}, 0
    for release in record.releases:
        for way in _ways(root, release):
            path = plan_path(root).parent / "measured" / f"{release.name}-{way}-{_key(release, load)}.json"
            if not path.is_file():
                write_json(path, asdict(measured_by(release_folder(root, release.name), way, load)))
                fresh += 1
            found[release.name, way] = _read(path)
    candidates = _candidates(params, record, found)
    target = params.deployment.target
    chosen = choose(candidates, target)
    content = {
        "machine": {"device": device().name, "cores": os.cpu_count(), "threads": params.machine.threads},
        "measured": fresh,  # candidates; the others were before
        "problems": len(load.questions),
        "currency": params.machine.prices.currency,
        "target": target.model_dump(),
        "chosen": None if chosen is None else _as_served(chosen, load.hot),
        "candidates": [
            {**asdict(one), "chosen": one is chosen, "misses": [str(miss) for miss in misses(one, target)]}
            for one in sorted(candidates, key=lambda one: one.cost)
        ],
    }
    before = read_plan(root)
    if before is None or {**before, "measured": fresh} != json.loads(json.dumps(content)):
        _track(root, params, record, candidates, content)
    write_json(plan_path(root), content, sort=False)  # last: what is written was tracked
    if chosen is None:
        raise GateFailedError(refusal(candidates, target))
    return content


def _as_served(chosen: Candidate, hot: float) -> dict[str, Any]:
    """The release, and machine.serving.hot with which the server has it as it was measured."""
    return {"release": chosen.release, "way": chosen.way, "hot": hot if chosen.way == "offload" else None}


def _load(root: Path, params: Params) -> Load:
    options = params.deployment.plan
    problems = read_table(root / "artifacts" / "curation" / "problems.parquet", Problem)
    asked = choose_problems(problems, options.problems, 0)
    if asked.is_empty():
        raise InputError("deployment.plan: the curated data has no checkable problem in its evaluation split")
    rows = asked.select("prompt", "gold", "verifier").iter_rows()
    return Load(
        tuple(Question(*row) for row in rows), options.alone, params.evaluation.sampling, params.seed, options.hot
    )


def _ways(root: Path, release: Release) -> tuple[Way, ...]:
    """A dense model has no experts that could lie elsewhere."""
    config = json.loads((release_folder(root, release.name) / "config.json").read_text(encoding="utf-8"))
    sparse = config.get("n_routed_experts") or config.get("num_experts")
    return ("memory", "offload") if sparse else ("memory",)


def _read(path: Path) -> Measured:
    kept = json.loads(path.read_text(encoding="utf-8"))
    return Measured(**kept | {"right": tuple(kept["right"])})


def _key(release: Release, load: Load) -> str:
    code = Path(__file__).parents[1]
    parts: Mapping[str, Any] = {
        "release": release.digest,
        "load": {**asdict(load), "sampling": load.sampling.model_dump()},
        "machine": [device().name, os.cpu_count(), platform.platform(), os.environ.get("OMP_NUM_THREADS")],
        "code": [digest(code / package) for package in SERVING],
        "verifiers": verifier_versions(),
        "torch": version("torch"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _candidates(params: Params, record: Record, found: Mapping[tuple[str, Way], Measured]) -> list[Candidate]:
    teacher = next(release.name for release in record.releases if release.kind == "teacher")
    reference = np.array(found[teacher, "memory"].right, dtype=float)
    kinds = {release.name: release.kind for release in record.releases}
    candidates = []
    for (name, way), one in found.items():
        right, hour = np.array(one.right, dtype=float), params.machine.prices.of(one.device, one.device_kind)
        candidates.append(
            Candidate(
                release=name,
                way=way,
                kind=kinds[name],
                pass_at_1=mean_interval(right.tolist(), params.seed),
                loss=difference_interval(reference - right, params.seed),
                memory=one.memory / MIB,
                model_memory=(one.memory - one.before) / MIB,
                resident=one.resident / MIB,
                speed=one.speed,
                speed_alone=one.speed_alone,
                first_token=one.first_token,
                latency=one.latency,
                cost=hour / 3600 / one.speed * 1e6,
            )
        )
    return candidates


def _track(
    root: Path, params: Params, record: Record, candidates: Sequence[Candidate], content: Mapping[str, Any]
) -> None:
    """A run named plan: the candidates' figures, and the table of them."""
    target = params.deployment.target.model_dump()
    inputs = {f"artifacts/{STAGE}/{release.name}": release.digest for release in record.releases}
    key = hashlib.sha256(json.dumps([inputs, target], sort_keys=True).encode()).hexdigest()[:16]
    settings = {"deployment": {"target": target, "plan": params.deployment.plan.model_dump()}}
    with Tracker(params.tracking, root, Description(NAME, key, settings, inputs)) as tracker:
        for one in candidates:
            figures = {name: value for name, value in asdict(one).items() if isinstance(value, float)}
            figures |= {"pass_at_1": one.pass_at_1.mean, "accuracy_loss": one.loss.mean}
            tracker.log({f"final/{one.release}/{one.way}/{name}": value for name, value in figures.items()}, step=0)
        tracker.table("candidates", 0, rows(content))
