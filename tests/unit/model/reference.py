"""Small random checkpoints of every architecture, written by transformers, as the reference to hold ours against."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder

FAMILIES = {
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}

COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 16,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
SPARSE = {"num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "head_dim": 16}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek-plain": ("deepseek_v3", {**LATENT, "tie_word_embeddings": True}),
    "deepseek-query-latent-groups": (
        "deepseek_v3",
        {**LATENT, "q_lora_rank": 24, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    ),
    "deepseek-yarn": (
        "deepseek_v3",
        {**LATENT, "q_lora_rank": 24, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}},
    ),
    "deepseek-halves-bias-two-shared": (
        "deepseek_v3",
        {
            **LATENT,
            "rope_interleave": False,
            "attention_bias": True,
            "norm_topk_prob": False,
            "n_shared_experts": 2,
            "first_k_dense_replace": 0,
            "v_head_dim": 12,
            "q_lora_rank": 20,
        },
    ),
    "qwen2-tied": ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2-yarn": ("qwen2", {"num_key_value_heads": 1, "rope_parameters": YARN}),
    "qwen2-yarn-outside": (
        "qwen2",
        {
            "num_key_value_heads": 1,
            "rope_parameters": {**YARN, "factor": 8.0},
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen3-wide-heads": ("qwen3", {"num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": True}),
    "qwen3-bias": ("qwen3", {"head_dim": 8, "attention_bias": True, "rms_norm_eps": 1e-5}),
    "qwen3-moe": ("qwen3_moe", {**SPARSE, "num_key_value_heads": 2, "norm_topk_prob": True}),
    "qwen3-moe-some-dense": (
        "qwen3_moe",
        {
            **SPARSE,
            "num_hidden_layers": 5,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "tie_word_embeddings": True,
        },
    ),
    "llama-grouped": ("llama", {"num_key_value_heads": 2, "rope_parameters": LLAMA3}),
    "llama-biases-tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 16},
    ),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
}


def reference(case: str) -> PreTrainedModel:
    """A transformers model whose every parameter is random, also those that it would start at 0 or 1."""
    family, settings = CASES[case]
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(len(case))
    model = model_class(config_class(**{**COMMON, **settings})).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
    return model


def config_of(case: str) -> dict[str, Any]:
    """The case as a config.json."""
    model_type, settings = CASES[case]
    return {**COMMON, **settings, "model_type": model_type}


def decoder(case: str) -> Decoder:
    """Our decoder of the case, its weights drawn from a seed that is always the same."""
    model = Decoder(ModelConfig.from_hf(config_of(case)))
    model.init_weights(seed=0)
    return model


def write_checkpoint(case: str, folder: Path, shard: str = "5GB") -> PreTrainedModel:
    """Write the case's reference model as transformers does and return it."""
    model = reference(case)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def random_sequences(lengths: list[int], vocabulary: int = 61, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocabulary, (length,), generator=generator) for length in lengths]


def positions_of(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])
