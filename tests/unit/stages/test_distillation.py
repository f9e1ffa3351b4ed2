"""The distillation stage on a project of toys: what it writes, and that a killed one ends in the same bits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import chat
from pipeline.errors import InputError
from pipeline.files import digest
from pipeline.job import Job, read_yaml
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer, load_tokenizer, save_tokenizer
from pipeline.params import Params
from pipeline.records import Problem, Trace, schema, write_table
from pipeline.stages import distillation

SMOKE = Path(__file__).parents[3] / "infra" / "profiles" / "smoke.yaml"


@pytest.fixture
def params() -> Params:
    return Params.model_validate(read_yaml(SMOKE))


@pytest.fixture
def root(tmp_path: Path, params: Params) -> Path:
    """A project in which all that a student reads is there."""
    problems, traces = [], []
    for number in range(12):
        problems.append(
            Problem(f"{number:02}", "made", "sum", f"{number}+1=?", f"{number + 1}", "numeric", "", 1, "train")
        )
        traces.append(Trace(f"{number:02}", f"{number}+1;{number + 1}", f"{number + 1}", "reasoning_rl"))
    write_table(pl.DataFrame(problems, schema=schema(Problem)), tmp_path / "artifacts/curation/problems.parquet")
    write_table(pl.DataFrame(traces, schema=schema(Trace)), tmp_path / "artifacts/rejection_sampling/traces.parquet")
    write_teacher(tmp_path, params, "")
    return tmp_path


def write_teacher(root: Path, params: Params, another: str) -> None:
    """A model that nobody has trained; `another` is one token more than the students have."""
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    tokenizer.add_tokens([another] if another else [])
    model = Decoder(ModelConfig.from_hf({**params.base.model_dump()["model"], "vocab_size": len(tokenizer)}))
    model.init_weights(0)
    folder = root / "artifacts" / "reasoning_rl" / "model"
    save_model(model, folder)
    save_tokenizer(tokenizer, folder)


class Run:
    """A student's stage, and what it logged."""

    def __init__(self, root: Path, student: str, key: str = "key") -> None:
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.kill_at: int | None = None
        self.job = Job(f"distillation@{student}", root, key, self.log, lambda name, step, rows: None)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if len(self.logged) == self.kill_at:
            raise KeyboardInterrupt
        self.logged.append((step, figures))

    def go(self, params: Params) -> dict[str, Any]:
        return distillation.run(params, self.job)


def test_a_student_is_a_whole_model_with_its_figures(root: Path, params: Params) -> None:
    metrics = Run(root, "dense").go(params)
    folder = root / "artifacts" / "distillation" / "dense" / "model"
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    assert len(tokenizer) == model.config.vocab_size
    assert list(metrics)[:3] == ["loss", "tokens", "examples"]
    assert metrics["examples"] == 12
    assert (metrics["parameters"], metrics["activated_parameters"]) == (model.size().total, model.size().activated)
    assert json.dumps(metrics)


def test_the_parts_of_the_work_make_curves_of_their_own(root: Path, params: Params) -> None:
    run = Run(root, "on-policy")
    metrics = run.go(params)
    parts = [[step for step, figures in run.logged if name in figures] for name in (
        "base/loss", "loss", "on_policy/divergence"
    )]  # fmt: skip
    assert parts == [[1, 2], [1, 2], [1, 2]]
    assert metrics["divergence"] > 0
    assert metrics["on_policy_tokens"] > 0


@pytest.mark.parametrize("kill", [1, 3, 5])
def test_a_killed_student_ends_in_the_same_bits(kill: int, root: Path, params: Params) -> None:
    whole = Run(root, "on-policy", "whole")
    expected, folder = whole.go(params), whole.job.output("model")
    before = digest(folder)
    killed = Run(root, "on-policy", "killed")
    killed.kill_at = kill
    with pytest.raises(KeyboardInterrupt):
        killed.go(params)
    assert Run(root, "on-policy", "killed").go(params) == expected
    assert digest(folder) == before


def test_a_teacher_of_another_vocabulary_is_refused_only_where_it_is_asked(root: Path, params: Params) -> None:
    write_teacher(root, params, "é")
    Run(root, "dense").go(params)
    with pytest.raises(InputError, match=r"distillation@on-policy.on_policy: 1 tokens are not the same .*reasoning_rl"):
        Run(root, "on-policy").go(params)
