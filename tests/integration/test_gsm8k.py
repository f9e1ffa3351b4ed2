"""The GSM8K profile in miniature, stage by stage, on the real files where they are there."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.__main__ import run_stage
from pipeline.errors import GateFailedError, InputError
from pipeline.job import read_stages
from pipeline.model.checkpoint import load_model
from pipeline.model.tokenizer import load_tokenizer
from pipeline.records import Problem, Trace, read_table

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("R1FLOW_DATA", ROOT.parent / "shared"))  # the folder above data/gsm8k
YAML_FILE = YAML(typ="safe", pure=True)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "data" / "gsm8k").is_dir(), reason="the GSM8K files are not here"),
]

MINIATURE: dict[str, Any] = {
    "base.train.steps": 4,
    "base.corpus.documents": 400,
    "base.tokenizer.vocabulary": 400,
    "cold_start.examples": 8,
    "cold_start.train.steps": 1,
    "reasoning_rl.train.steps": 1,
    "reasoning_rl.train.prompts": 2,
    "reasoning_rl.train.group": 2,
    "reasoning_rl.train.max_new_tokens": 16,
    "rejection_sampling.problems": 4,
    "rejection_sampling.samples": 1,
    "rejection_sampling.sampling.max_new_tokens": 16,
    "preference.min_accuracy": 0.0,
    "preference.train.steps": 1,
    "general_rl.train.steps": 2,
    "general_rl.train.prompts": 2,
    "general_rl.train.group": 2,
    "general_rl.train.max_new_tokens": 16,
    "general_rl.monitor": {"every": 1, "problems": 4, "prompts": 4, "samples": 2},
    "evaluation.problems": 4,
    "evaluation.samples": 1,
    "evaluation.general": 2,
    "evaluation.sampling.max_new_tokens": 16,
}


def _miniature() -> dict[str, Any]:
    params = YAML_FILE.load((ROOT / "infra" / "profiles" / "gsm8k.yaml").read_text())
    for name, value in MINIATURE.items():
        *sections, last = name.split(".")
        section = params
        for part in sections:
            section = section[part]
        section[last] = value
    return params


def _run(folder: Path, stage: str) -> None:
    """In this process, which has the numeric libraries already; R1FLOW_DATA says where the files are."""
    with contextlib.chdir(folder):
        run_stage(stage, folder)


@pytest.fixture(autouse=True, scope="module")
def _data() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("R1FLOW_DATA", str(DATA))
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gsm8k")
    shutil.copy(ROOT / "dvc.yaml", folder)
    with (folder / "params.yaml").open("w") as file:
        YAML_FILE.dump(_miniature(), file)
    for stage in ("curation", "base", "cold_start", "reasoning_rl"):
        _run(folder, stage)
    return folder


def test_real_problems_become_tables_with_the_split_of_their_authors(project: Path) -> None:
    problems = read_table(project / "artifacts" / "curation" / "problems.parquet", Problem)
    counts = {(task, split): many for task, split, many in problems.group_by("task", "split").len().iter_rows()}
    assert counts["gsm8k", "train"] == 7472
    assert counts["gsm8k", "evaluation"] == 1319
    assert counts["request", "train"] > 10 * counts["request", "evaluation"] / 2 > 0


def test_every_model_speaks_the_bases_byte_pairs(project: Path) -> None:
    question = "Natalia’s 48 friends paid £½ each – how much?"
    for stage in ("base", "cold_start", "reasoning_rl"):
        folder = project / "artifacts" / stage / "model"
        tokenizer = load_tokenizer(folder)
        assert tokenizer.decode(tokenizer(question).input_ids) == question
        assert load_model(folder).config.vocab_size == len(tokenizer) == 400


def test_a_model_that_solves_nothing_stops_at_the_gate_of_rejection_sampling(project: Path) -> None:
    with pytest.raises(GateFailedError, match="yield"):
        _run(project, "rejection_sampling")


def test_what_follows_runs_on_traces_of_the_train_split(project: Path) -> None:
    """The selection of such a model is empty, so curation's own traces stand in for it."""
    artifacts = project / "artifacts"
    traces = read_table(artifacts / "curation" / "traces.parquet", Trace)
    (artifacts / "rejection_sampling").mkdir(exist_ok=True)
    traces[:20].write_parquet(artifacts / "rejection_sampling" / "traces.parquet")
    params = YAML_FILE.load((project / "params.yaml").read_text())
    params["distillation"]["students"]["dense"]["base"]["train"]["steps"] = 2
    for section in (params["general_sft"]["train"], params["distillation"]["students"]["dense"]["train"]):
        section["steps"] = 1
    with (project / "params.yaml").open("w") as file:
        YAML_FILE.dump(params, file)
    stages = list(read_stages(project))
    for stage in stages[stages.index("rejection_sampling") + 1 :]:
        _run(project, stage)
    figures = json.loads((artifacts / "evaluation" / "metrics.json").read_text())
    assert 0 <= figures["general_sft.pass_at_1"] <= 1


@pytest.mark.parametrize(
    ("place", "message"),
    [("", "gsm8k-train.path: data/gsm8k/train.jsonl: no such file"), ("nowhere", "R1FLOW_DATA")],
)
def test_files_that_are_not_there_are_named(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    monkeypatch.setenv("R1FLOW_DATA", str(tmp_path / place))
    with pytest.raises(InputError, match=message):
        _run(project, "curation")
