"""The formula against torch's own count of the products that a forward pass really does."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model import experts, native
from pipeline.model.adapter import all_targets, attach
from pipeline.model.attention import PackedSequences
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.flops import Arithmetic, arithmetic

LATENT = {
    "model_type": "deepseek_v3", "vocab_size": 30, "hidden_size": 16, "intermediate_size": 32,
    "moe_intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.0, "norm_topk_prob": True, "first_k_dense_replace": 1, "q_lora_rank": None,
    "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}  # fmt: skip
GROUPED = {
    "model_type": "qwen2", "vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
SPARSE = {
    **GROUPED, "model_type": "qwen3_moe", "head_dim": 8, "num_experts": 6, "num_experts_per_tok": 3,
    "moe_intermediate_size": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [0],
}  # fmt: skip


def textbook_experts(x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor, base: Tensor) -> Tensor:
    """One expert after the other, as in the paper: no padding, which would be counted."""
    out = base.clone()
    for expert in range(len(down)):
        token, choice = (chosen == expert).nonzero(as_tuple=True)
        gate, up = (x[token] @ gate_up[expert].T).chunk(2, dim=-1)
        rows = (F.silu(gate) * up) @ down[expert].T
        out.index_add_(0, token, rows * weights[token, choice, None])
    return out


def model_of(config: dict[str, Any]) -> Decoder:
    model = Decoder(ModelConfig.from_hf(config))
    model.init_weights(seed=0)
    return model


@pytest.mark.parametrize("config", [LATENT, {**LATENT, "q_lora_rank": 12}, GROUPED, SPARSE])
def test_the_formula_is_what_torch_counts(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "usable", lambda *tensors: False)
    monkeypatch.setattr(experts, "run_experts", textbook_experts)
    model, length, predictions = model_of(config), 16, 5
    flops = arithmetic(model)
    tokens = torch.arange(length) % 30
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden = model(tokens, torch.arange(length), PackedSequences([length])).hidden
        model.logits(hidden[:predictions])
    square = length * length - length * (length + 1) // 2  # torch computes what the mask then takes away
    assert counter.get_total_flops() == flops.forward([length], predictions) + flops.pair * square


def test_only_activated_experts_count() -> None:
    """As many more experts, of which as few are chosen, cost nothing but the router's scores."""
    few, many = (arithmetic(model_of({**LATENT, "n_routed_experts": count})) for count in (8, 16))
    sparse_layers = 2
    assert many.token - few.token == sparse_layers * 2 * 8 * LATENT["hidden_size"]


@given(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_generation_is_its_tokens_one_by_one(prompt: int, completions: list[int]) -> None:
    flops = Arithmetic(token=1000, pair=10, prediction=1)
    whole = flops.forward([prompt], 1)
    for length in completions:  # the last token of a completion is written, and not read again
        for place in range(prompt + 1, prompt + length):
            whole += 1000 + 10 * place + 1
    assert flops.generation(prompt, completions) == whole


def test_keys_and_values_of_different_widths_both_count() -> None:
    """By hand: torch's call would pad the narrower ones."""
    layers, heads = LATENT["num_hidden_layers"], LATENT["num_attention_heads"]
    assert arithmetic(model_of({**LATENT, "v_head_dim": 6})).pair == layers * heads * 2 * (4 + 4 + 6)


def test_training_is_three_forward_passes() -> None:
    flops = arithmetic(model_of(GROUPED))
    assert flops.training([3, 4], 5) == 3 * (flops.forward([3], 2) + flops.forward([4], 3))


def test_frozen_weights_have_no_gradients_to_pay_for() -> None:
    model = model_of(LATENT)
    whole = arithmetic(model)
    attach(model, 2, 2.0, all_targets(model), seed=0)
    adapted = arithmetic(model)
    assert adapted.forward([5, 9], 7) == whole.forward([5, 9], 7)
    assert adapted.training([5, 9], 7) * 3 == whole.training([5, 9], 7) * 2
