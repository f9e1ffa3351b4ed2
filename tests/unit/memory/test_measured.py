"""The planner against what tensors really held at once: SFT and GRPO, dense and sparse, adapters, checkpointing."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline import chat
from pipeline.bench import grpo, sft
from pipeline.bench.peak import peak_after
from pipeline.memory.step import Work, peak
from pipeline.model import native
from pipeline.model.checkpoint import save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer, save_tokenizer
from pipeline.params import Distributed

GROUPED: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
DENSE = {
    **GROUPED,
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
SPARSE = {
    **GROUPED,
    "model_type": "deepseek_v3",
    "hidden_size": 128,
    "first_k_dense_replace": 1,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "n_routed_experts": 64,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "tie_word_embeddings": True,
}
TOLERANCE = 0.1
needs_kernels = pytest.mark.skipif(native.library() is None, reason="no compiler: other tensors are kept")


def _checkpoint(model: dict[str, Any], folder: Path) -> Path:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    decoder = Decoder(ModelConfig.from_hf({**model, "vocab_size": len(tokenizer)}))
    decoder.init_weights(0)
    save_model(decoder, folder)
    save_tokenizer(tokenizer, folder)
    return folder


@needs_kernels
@pytest.mark.parametrize(
    ("model", "batch", "rank", "recompute"),
    [(DENSE, 16, 0, False), (DENSE, 64, 8, True), (SPARSE, 16, 0, False), (SPARSE, 32, 8, False)],
    ids=["dense", "dense-adapter-checkpointed", "sparse", "sparse-adapter"],
)
def test_supervised(tmp_path: Path, model: dict[str, Any], batch: int, rank: int, recompute: bool) -> None:
    make = partial(sft.trainer, _checkpoint(model, tmp_path), batch, 2, "float32", rank, recompute)
    measured = peak_after(make, lambda trainer: [trainer.step(0), trainer.step(1)])
    trainer = make()
    tokens = sum(len(example) - 1 for example in trainer.examples[batch:])
    planned = peak(trainer.decoder.config, trainer.options, Distributed(), Work(tokens, tokens, 1))
    assert planned.total == pytest.approx(measured, rel=TOLERANCE)


@needs_kernels
@pytest.mark.parametrize(
    ("model", "rank", "recompute"),
    [(DENSE, 8, True), (SPARSE, 0, False)],
    ids=["dense-adapter-checkpointed", "sparse"],
)
def test_grpo(tmp_path: Path, model: dict[str, Any], rank: int, recompute: bool) -> None:
    prompts, group, new = 4, 4, 24
    folder = _checkpoint(model, tmp_path)
    make = partial(grpo.trainer, folder, prompts, group, new, 2, "float32", rank, recompute)
    measured = peak_after(make, lambda step: [step.run(0, 0), step.run(1, prompts)])
    step = make()
    step.run(0, 0)
    trajectories = step.run(1, prompts).trajectories
    longest = step.questions.longest + new
    work = Work(
        tokens=sum(len(one) - 1 for one in trajectories),
        predictions=sum(one.completion for one in trajectories),
        rounds=1,
        loss="policy",
        slots=prompts * group,
        longest=longest,
        prefill=prompts * step.questions.longest,
        reference=True,
    )
    config = ModelConfig.from_hf({**model, "vocab_size": len(character_tokenizer(chat.CHAT_TEMPLATE))})
    assert peak(config, step.options, Distributed(), work).total == pytest.approx(measured, rel=TOLERANCE)


def test_parameters_are_those_of_the_model() -> None:
    from pipeline.memory.shapes import size

    for model in (DENSE, SPARSE):
        config = ModelConfig.from_hf({**model, "vocab_size": 106})
        assert size(config) == Decoder(config).size().total
