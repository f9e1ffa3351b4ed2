"""A finished project of many models, made of files alone, with texts that would like to be HTML."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.cost import Cost
from pipeline.job import Work
from pipeline.records import Problem, schema
from pipeline.state import State
from tests.project import PARAMS

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"><!-- <script>"

# Students are repeated over a mapping in params; here it is the price table's, whose keys are free.
STUDENTS = ("dense", "small")
DAG = """\
stages:
  curation: {cmd: a, outs: [artifacts/curation/problems.parquet], metrics: [artifacts/curation/metrics.json]}
  base: {cmd: a, outs: [artifacts/base/model], metrics: [artifacts/base/metrics.json]}
  cold_start:
    cmd: a
    deps: [artifacts/base/model, artifacts/curation/problems.parquet]
    outs: [artifacts/cold_start/model: {persist: true}]
  general_rl:
    cmd: a
    deps: [artifacts/base/model, artifacts/cold_start/model]
    outs: [artifacts/general_rl/model]
  distillation:
    foreach: ${machine.prices.device_hour}
    do:
      cmd: a ${key}
      deps: [artifacts/general_rl/model]
      outs: ["artifacts/distillation/${key}/model"]
  evaluation:
    cmd: a
    deps: [artifacts/curation/problems.parquet, artifacts/general_rl/model, artifacts/distillation]
    outs: [artifacts/evaluation/samples.parquet]
"""
MODELS = {"general_rl": 0.5725, "distillation/small": 0.5, "distillation/dense": 0.25, "cold_start": 0.4, "base": 0.1}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def bare_project(root: Path) -> Path:
    """dvc.yaml and params.yaml; nothing has run."""
    prices = "{default: 1.0, " + ", ".join(f"{student}: 1.0" for student in STUDENTS) + "}"
    machine = f"machine: {{retries: 1, prices: {{device_hour: {prices}}}}}"
    assert "machine: {retries: 1}" in PARAMS
    write(root / "params.yaml", PARAMS.replace("machine: {retries: 1}", machine) + f"# {HOSTILE}\n")
    write(root / "dvc.yaml", DAG)
    return root


def add_stage(root: Path, stage: str, metrics: dict[str, float], seconds: float = 3600.0, error: str = "") -> None:
    """A stage that has run: its figures, state and account."""
    write(root / "artifacts" / stage.replace("@", "/") / "metrics.json", metrics)
    state = State("failed" if error else "finished", 1, "2026-01-01T00:00:00+00:00", seconds, error=error, key="k")
    write(root / "runs" / stage / "state.json", asdict(state))
    cost = Cost(1, seconds, seconds, seconds / 3600, "USD", "a CPU", 1, {}, 10**9, None, Work(1000, 2000, 10**12))
    write(root / "runs" / stage / "k" / "cost.json", asdict(cost))


def evaluation_figures() -> dict[str, float]:
    figures: dict[str, float] = {}
    for model, share in MODELS.items():
        for key, value in ((f"{model}.pass_at_1", share), (f"{model}.sum.pass_at_1", share / 2)):
            figures |= {key: value, f"{key}_low": value - 0.03125, f"{key}_high": value + 0.0312}
    figures |= {"general_rl.over_base": 0.4725, "general_rl.over_base_low": 0.25, "general_rl.over_base_high": 0.625}
    figures |= {"general_rl.over_base_p": 0.0001, "base.cons_at_4": 0.125, "general_rl.tokens": 41.25}
    return figures | {"problems": 40, "odd": float("nan")}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = bare_project(tmp_path)
    funnel = {"problems": 40, "traces": 5, "pairs": 0, "read/sums": 41, "quarantined/language": 1, "train/sum": 40}
    add_stage(root, "curation", funnel)
    sizes = {"parameters": 7_393_600, "activated_parameters": 414_016}
    for stage in ("base", "cold_start", "general_rl", "distillation@small", "distillation@dense"):
        add_stage(root, stage, sizes)
    add_stage(root, "evaluation", evaluation_figures(), error=HOSTILE)
    problems, samples = [], []
    for number in range(40):
        prompt = HOSTILE if number == 0 else f"{number}+1=?"
        row = (f"id{number:02}", "sums", "sum", prompt, str(number + 1), "numeric", "", 1.0, "evaluation")
        problems.append(dict(zip((field.name for field in fields(Problem)), row, strict=True)))
        for model in MODELS:
            right = model == "general_rl" or number % 2 == 0
            completion = HOSTILE if number == 0 else f"<think>because</think><answer>{number + right}</answer>"
            verdict = "right" if right else "wrong"
            for sample in range(2):
                samples.append(
                    {
                        "model": model, "problem_id": f"id{number:02}", "task": "sum", "number": sample,
                        "completion": completion, "tokens": 9, "finished": True, "well_formed": number > 0,
                        "verdict": verdict, "verifier": "numeric 1",
                    }
                )  # fmt: skip
    pl.DataFrame(problems, schema=schema(Problem)).write_parquet(root / "artifacts" / "curation" / "problems.parquet")
    pl.DataFrame(samples).write_parquet(root / "artifacts" / "evaluation" / "samples.parquet")
    return root
