"""Stages that train an adapter write a whole model, and beside it the adapter that makes it of the one before."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from pipeline import chat
from pipeline.errors import InputError
from pipeline.files import digest
from pipeline.job import Job, read_yaml
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.reward import load_reward
from pipeline.model.tokenizer import character_tokenizer, save_tokenizer
from pipeline.params import Params
from pipeline.records import PreferencePair, Problem, Trace, schema, write_table
from pipeline.stages import cold_start, distillation, preference, reasoning_rl

SMOKE = Path(__file__).parents[3] / "infra" / "profiles" / "smoke.yaml"
ADAPTER = {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "kv_b_proj", "gate_proj", "up_proj", "experts"]}
OUTPUTS = {"cold_start": "model", "reasoning_rl": "model", "distillation@dense": "model", "preference": "witness"}
RUNS: dict[str, Callable[[Params, Job], Mapping[str, float]]] = {
    "cold_start": cold_start.run,
    "reasoning_rl": reasoning_rl.run,
    "distillation@dense": distillation.run,
    "preference": preference.run,
}


def params(adapter: Mapping[str, Any] = ADAPTER) -> Params:
    """The smoke profile, but every stage trains an adapter and keeps few activations."""
    document = read_yaml(SMOKE)
    saving = {"adapter": adapter, "checkpoint_activations": True}
    for section in ("cold_start", "reasoning_rl", "preference"):
        document[section]["train"] |= saving
    document["preference"]["train"] |= {"steps": 40, "pairs_per_step": 16, "learning_rate": 3e-2}
    checkpoint = {"kind": "checkpoint", "source": "artifacts/base/model", "digest": "0" * 64}
    dense = document["distillation"]["students"]["dense"]
    document["distillation"]["students"]["dense"] = {
        "base": checkpoint,
        "train": {**dense["train"], **saving},
        "on_policy": {"steps": 2, "prompts": 4, "max_new_tokens": 8, "learning_rate": 1e-3, **saving},
    }
    return Params.model_validate(document)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which all that the stages read is there; its one model is one that nobody has trained."""
    problems, traces = [], []
    for number in range(12):
        asked = f"{number}+1=?"
        problems.append(Problem(f"{number:02}", "made", "sum", asked, f"{number + 1}", "numeric", "", 1, "train"))
        traces.append(Trace(f"{number:02}", f"{number}+1;{number + 1}", f"{number + 1}", "made"))
    pairs = [
        PreferencePair(f"ask {number}", "Yes" + "!" * (1 + number % 3), "Not" + "." * (1 + number // 3 % 3), "made")
        for number in range(60)
    ]
    for table, name, kind in (
        (problems, "curation/problems", Problem),
        (traces, "curation/traces", Trace),
        (traces, "rejection_sampling/traces", Trace),
        (pairs, "curation/pairs", PreferencePair),
    ):
        write_table(pl.DataFrame(table, schema=schema(kind)), tmp_path / f"artifacts/{name}.parquet")
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    config = read_yaml(SMOKE)["base"]["model"] | {"vocab_size": len(tokenizer)}
    model = Decoder(ModelConfig.from_hf(config))
    model.init_weights(0)
    for stage in ("base", "cold_start", "general_sft", "reasoning_rl"):
        save_model(model, tmp_path / "artifacts" / stage / "model")
        save_tokenizer(tokenizer, tmp_path / "artifacts" / stage / "model")
    monkeypatch.setattr("pipeline.training.pretraining.fetch", lambda source, *rest: tmp_path / source)
    return tmp_path


class Run:
    """A stage's run that may be killed at one of its steps."""

    def __init__(self, root: Path, stage: str, key: str = "key", kill_at: int | None = None) -> None:
        self.kill_at, self.told = kill_at, 0
        self.job = Job(stage, root, key, self.log, lambda name, step, rows: None)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if self.told == self.kill_at:
            raise KeyboardInterrupt
        self.told += 1

    def go(self, given: Params) -> Mapping[str, float]:
        return RUNS[self.job.stage](given, self.job)


@pytest.mark.parametrize("stage", ["cold_start", "reasoning_rl", "distillation@dense"])
def test_the_model_is_the_one_before_with_the_adapter_added(stage: str, root: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    before = root / "artifacts" / "base" / "model"
    metrics = Run(root, stage).go(params())
    folder = root / "artifacts" / stage.replace("@", "/") / "model"
    model = load_model(folder)
    assert metrics["parameters"] == model.size().total
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(before).eval(), folder / "adapter")
    ours = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        adapted, merged = theirs(tokens).logits, ours(tokens).logits
        without = load_model(before)
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=0)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), without.parameters(), strict=True))
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4.0)


@pytest.mark.parametrize(
    ("stage", "kill_at"), [("reasoning_rl", 1), ("distillation@dense", 1), ("distillation@dense", 3)]
)
def test_a_killed_stage_ends_in_the_same_bits(stage: str, kill_at: int, root: Path) -> None:
    whole = Run(root, stage, "whole")
    expected, folder = whole.go(params()), whole.job.output(OUTPUTS[stage])
    before = digest(folder)
    with pytest.raises(KeyboardInterrupt):
        Run(root, stage, "killed", kill_at).go(params())
    assert Run(root, stage, "killed").go(params()) == expected
    assert digest(folder) == before


def test_a_preference_model_learns_by_its_head_and_an_adapter(root: Path) -> None:
    assert Run(root, "preference").go(params())["accuracy"] > 0.6
    reward = load_reward(root / "artifacts" / "preference" / "witness")
    start = load_model(root / "artifacts" / "general_sft" / "model")
    changed = {
        name
        for (name, weight), other in zip(start.named_parameters(), reward.decoder.parameters(), strict=True)
        if not torch.equal(weight, other)
    }
    assert changed
    assert all(".mlp." in name or ".self_attn." in name for name in changed)


def test_a_target_that_the_model_does_not_have_is_a_mistake_in_params(root: Path) -> None:
    with pytest.raises(InputError, match=r"adapter.targets: k_proj: not in this deepseek_v3 model: must be among"):
        Run(root, "cold_start").go(params({**ADAPTER, "targets": ["k_proj"]}))
