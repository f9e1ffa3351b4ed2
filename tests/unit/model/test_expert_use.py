"""Shares of experts by task."""

import pytest
import torch

from pipeline.errors import InputError
from pipeline.model import expert_use as module
from pipeline.model.attention import PackedSequences
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.expert_use import expert_use

SPARSE = {
    "model_type": "deepseek_v3", "vocab_size": 30, "hidden_size": 16, "intermediate_size": 32,
    "moe_intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.0, "norm_topk_prob": True, "first_k_dense_replace": 1, "q_lora_rank": None,
    "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "max_position_embeddings": 64,
    "tie_word_embeddings": True, "initializer_range": 0.5,
}  # fmt: skip
DENSE = {
    "model_type": "llama", "vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip


def model_of(config: dict[str, object]) -> Decoder:
    model = Decoder(ModelConfig.from_hf(config))
    model.init_weights(0)
    return model


def test_shares_are_the_routers_choices_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(SPARSE)
    sequences = [[number, 5, 7, number + 1] for number in range(10)]
    tasks = ["a" if number % 3 else "b" for number in range(10)]
    monkeypatch.setattr(module, "RUN_TOKENS", 9)  # two sequences at once
    use = expert_use(model, sequences, tasks)
    for task in ("a", "b"):
        counts = torch.zeros(2, 8)
        for sequence, of in zip(sequences, tasks, strict=True):
            if of == task:
                with torch.no_grad():
                    output = model(torch.tensor(sequence), torch.arange(4), PackedSequences([4]))
                for layer, routing in enumerate(output.routing):
                    for expert in routing.experts.flatten().tolist():
                        counts[layer, expert] += 1
        torch.testing.assert_close(torch.tensor(use[task]), counts / counts.sum(1, keepdim=True))


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(InputError, match="llama"):
        expert_use(model_of(DENSE), [[1, 2]], ["a"])
