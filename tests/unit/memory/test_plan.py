"""From params to the memory of every training stage, and the shipped profiles on the devices that they name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import chat
from pipeline.errors import InputError
from pipeline.memory import plan
from pipeline.memory.plan import StagePlan, plan_memory
from pipeline.memory.shapes import size
from pipeline.memory.table import fits
from pipeline.model.config import ModelConfig
from pipeline.params import Params, load_params

ROOT = Path(__file__).parents[3]
PROFILES = ROOT / "infra" / "profiles"
MODELS = PROFILES / "models"
USABLE = 0.95  # of a device: the rest is its context, and what is lost between tensors
GIB = 2**30


def _config(name: str) -> Path:
    return MODELS / name / "config.json"


def _profile(name: str, student: str, model: str) -> dict[str, StagePlan]:
    configs = {"base": _config(name), student: _config(model)}
    plans = plan_memory(load_params(PROFILES / f"{name}.yaml"), configs, prompt_tokens=512)
    return {one.stage: one for one in plans}


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("r1-distill-qwen-1.5b", 1.777),
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-7b", 7.616),
        ("qwen3-30b-a3b", 30.532),
        ("deepseek-v3-671b", 671.026),
    ],
)
def test_published_models_have_their_published_size(name: str, billions: float) -> None:
    config = ModelConfig.from_hf(json.loads(_config(name).read_text()))
    assert size(config) / 1e9 == pytest.approx(billions, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "student", "model", "device"),
    [
        ("r1-distill-qwen-1.5b", "tiny", "qwen2.5-0.5b", 80),
        ("qwen2.5-7b", "small", "qwen2.5-0.5b", 80),
        ("qwen3-30b-a3b", "dense", "qwen2.5-7b", 167),
    ],
)
def test_a_profile_fits_the_device_it_names(name: str, student: str, model: str, device: float) -> None:
    over = [stage for stage, one in _profile(name, student, model).items() if not fits(one, USABLE * device)]
    assert over == []


def test_the_largest_profile_fits_but_for_reinforcement_learning() -> None:
    plans = _profile("deepseek-v3-671b", "dense", "qwen2.5-7b")
    assert {stage for stage, one in plans.items() if not fits(one, USABLE * 268)} == {"reasoning_rl", "general_rl"}
    assert plans["reasoning_rl"].peak.parts["engine copy"] == pytest.approx(4 * 671.026e9, rel=1e-3)


def test_every_training_of_the_default_recipe_is_planned() -> None:
    plans = plan_memory(load_params(ROOT / "params.yaml"), {}, prompt_tokens=64)
    assert [one.stage for one in plans] == [
        *("base", "cold_start", "reasoning_rl", "general_sft", "preference", "general_rl"),
        *("distillation@medium base", "distillation@medium", "distillation@small base", "distillation@small"),
        *("distillation@sparse base", "distillation@sparse"),
    ]
    assert all(0 < one.peak.total < GIB for one in plans)


def test_a_teacher_beside_its_student_is_counted() -> None:
    plans = {one.stage: one for one in plan_memory(load_params(PROFILES / "smoke.yaml"), {}, prompt_tokens=64)}
    assert plans["distillation@on-policy on_policy"].peak.parts["other models"] > 4 * plans["base"].parameters


def _changed(**distributed: Any) -> Params:
    document = YAML(typ="safe", pure=True).load((PROFILES / "qwen2.5-7b.yaml").read_text())
    document["distributed"] = {"ranks": 8, "nodes": 1, "zero": 0, "offload": "none"} | distributed
    return Params.model_validate(document)


def _reasoning(**distributed: Any) -> StagePlan:
    configs = {"base": _config("qwen2.5-7b"), "small": _config("qwen2.5-0.5b")}
    [found] = [one for one in plan_memory(_changed(**distributed), configs, 512) if one.stage == "reasoning_rl"]
    return found


def test_each_level_splits_what_it_says() -> None:
    number, ranks = 7_615_616_512, 8
    whole, split = _reasoning(zero=0), _reasoning(zero=1)
    assert whole.peak.parts["optimiser"] == 8 * number
    assert split.peak.parts["optimiser"] == 12 * number / ranks
    assert whole.peak.parts["weights"] == split.peak.parts["weights"] == 4 * number
    assert _reasoning(zero=2).peak.parts["gradients"] < split.peak.parts["gradients"]
    third = _reasoning(zero=3)
    assert third.peak.parts["weights"] == 4 * number / ranks
    assert third.peak.parts["engine copy"] == 4 * number


def test_what_is_offloaded_lies_in_the_hosts_memory() -> None:
    here, there = _reasoning(zero=3), _reasoning(zero=3, offload="all")
    assert "weights" not in there.peak.parts
    assert "optimiser" not in there.peak.parts
    assert there.peak.host > here.peak.parts["weights"] + here.peak.parts["optimiser"]


def test_a_checkpoint_that_is_not_here_needs_its_config(tmp_path: Path) -> None:
    params = load_params(PROFILES / "qwen2.5-7b.yaml")
    with pytest.raises(InputError, match=r"base: source Qwen/Qwen2.5-7B: is no folder here: --config FILE"):
        plan_memory(params, {}, 512)
    with pytest.raises(InputError, match=r"small: source .*: --config small=FILE"):
        plan_memory(params, {"base": _config("qwen2.5-7b")}, 512)
    with pytest.raises(InputError, match="--config medium=…: must name one of base, small"):
        plan_memory(params, {"medium": _config("qwen2.5-7b")}, 512)
    broken = tmp_path / "config.json"
    broken.write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        plan_memory(params, {"base": broken}, 512)
    with pytest.raises(InputError, match="--config for base: has no use"):
        plan_memory(load_params(ROOT / "params.yaml"), {"base": _config("qwen2.5-7b")}, 512)


def test_constants_are_those_of_the_code_they_speak_of() -> None:
    from pipeline.generation.engine import PREFILL_TOKENS
    from pipeline.gkd import divergence
    from pipeline.memory.step import LOGITS
    from pipeline.model.tokenizer import character_tokenizer
    from pipeline.training import loss

    assert len(character_tokenizer(chat.CHAT_TEMPLATE)) == plan.CHARACTERS
    assert plan.PREFILL == PREFILL_TOKENS
    assert LOGITS == {"entropy": loss.CHUNK, "policy": loss.CHUNK, "pairs": 0, "divergence": divergence.CHUNK}


def test_the_command_prints_and_says_what_does_not_fit() -> None:
    program = [sys.executable, "-c", "from pipeline.cli import main; main()", "plan-memory"]
    given = ["--params", str(ROOT / "params.yaml"), "--json", "--device-memory", "0.001"]
    done = subprocess.run([*program, *given], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert "more than 0.001 GiB: base, cold_start" in done.stderr
    first = json.loads(done.stdout)[0]
    assert (first["stage"], first["bytes"]) == ("base", sum(first["parts"].values()))
