"""What a decoder is built from, read out of and written into a Hugging Face config.json.

Five model types share one shape here: an attention (latent or grouped), an optional mixture of experts, a rope.
Different from transformers: a value that we would not follow (an active sliding window, a quantisation other than that
of packed_layout, a rope type we do not compute) is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.model import packed_layout
from pipeline.model.fields import Fields
from pipeline.model.parts import (
    GroupedAttention,
    LatentAttention,
    Mixture,
    Rope,
    read_grouped,
    read_latent,
    read_mixture,
    read_rope,
    write_rope,
)

ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "llama": "LlamaForCausalLM",
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes a decoder's parameters and arithmetic, under the names of config.json."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    initializer_range: float
    tie_word_embeddings: bool
    mlp_bias: bool
    rope: Rope
    attention: GroupedAttention | LatentAttention
    mixture: Mixture | None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def has_balance_bias(self) -> bool:
        """Whether the routers carry the bias that `Decoder.update_balance` moves."""
        return self.mixture is not None and self.mixture.scoring == "sigmoid" and bool(self.mixture.layers)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Read the contents of a config.json; raises InputError with key, value and rule."""
        return cls._read(Fields(config))

    @classmethod
    def from_params(cls, config: Mapping[str, Any], key: str) -> "ModelConfig":
        """The same of what params name under `key`, without the vocabulary. A key that means nothing is refused too."""
        fields = Fields({**config, "vocab_size": 1}, f"{key}.", "params")
        found = cls._read(fields)
        fields.refuse_unread()
        return found

    @classmethod
    def _read(cls, fields: Fields) -> "ModelConfig":
        model_type = fields.choice("model_type", tuple(ARCHITECTURES))
        _refuse_what_we_do_not_compute(fields)
        packed_layout.require_layout(fields.file, {"quantization_config": fields.get("quantization_config")})
        heads = fields.integer("num_attention_heads")
        layers = fields.integer("num_hidden_layers")
        positions = fields.integer("max_position_embeddings")
        latent = model_type == "deepseek_v3"
        return cls(
            model_type=model_type,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=fields.integer("hidden_size"),
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=positions,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6, above=0.0),
            initializer_range=fields.number("initializer_range", 0.02, above=0.0),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            mlp_bias=model_type == "llama" and fields.flag("mlp_bias", False),
            rope=read_rope(fields, positions),
            attention=read_latent(fields, heads) if latent else read_grouped(fields, model_type, heads),
            mixture=read_mixture(fields, model_type, layers),
            bos_token_id=fields.token("bos_token_id"),
            eos_token_id=fields.tokens("eos_token_id"),
            pad_token_id=fields.token("pad_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The config.json that `from_hf` and transformers 5 read back as this very model."""
        eos = list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id
        return {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_dropout": 0.0,
            "rope_parameters": write_rope(self.rope),
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": self.pad_token_id,
            "use_cache": True,
            **_write_attention(self),
            **_write_mixture(self),
        }


def _refuse_what_we_do_not_compute(fields: Fields) -> None:
    fields.must_be("hidden_act", "silu")
    fields.must_be("attention_dropout", 0)
    fields.must_be("partial_rotary_factor", 1)
    # Of the Qwen dense models only the layers from max_window_layers on slide; of the sparse ones all do.
    dense = fields.get("model_type") in ("qwen2", "qwen3")
    first = fields.integer("max_window_layers", 0, minimum=0) if dense else 0
    if fields.flag("use_sliding_window", False) and first < fields.integer("num_hidden_layers"):
        fields.refuse("use_sliding_window", "must be false: attention here looks at the whole sequence")
    layer_types = fields.get("layer_types", [])
    if not isinstance(layer_types, list | tuple) or any(kind != "full_attention" for kind in layer_types):
        fields.refuse("layer_types", "must all be full_attention: attention here looks at the whole sequence")


def _write_attention(config: ModelConfig) -> dict[str, Any]:
    attention = config.attention
    if isinstance(attention, LatentAttention):
        return {
            "num_key_value_heads": config.num_attention_heads,
            "q_lora_rank": attention.q_lora_rank,
            "kv_lora_rank": attention.kv_lora_rank,
            "qk_nope_head_dim": attention.qk_nope_head_dim,
            "qk_rope_head_dim": attention.qk_rope_head_dim,
            "v_head_dim": attention.v_head_dim,
            "rope_interleave": attention.rope_interleave,
            "attention_bias": attention.bias,
        }
    written: dict[str, Any] = {"num_key_value_heads": attention.num_key_value_heads, "head_dim": attention.head_dim}
    if config.model_type == "llama":
        return written | {"attention_bias": attention.output_bias, "mlp_bias": config.mlp_bias}
    written |= {"use_sliding_window": False, "sliding_window": None}
    return written if config.model_type == "qwen2" else written | {"attention_bias": attention.output_bias}


def _write_mixture(config: ModelConfig) -> dict[str, Any]:
    mixture = config.mixture
    if mixture is None:
        return {}
    written = {
        "num_experts_per_tok": mixture.top_k,
        "moe_intermediate_size": mixture.expert_size,
        "norm_topk_prob": mixture.norm_topk_prob,
    }
    if config.model_type == "qwen3_moe":
        dense = [layer for layer in range(config.num_hidden_layers) if layer not in mixture.layers]
        return written | {"num_experts": mixture.experts, "decoder_sparse_step": 1, "mlp_only_layers": dense}
    return written | {
        "n_routed_experts": mixture.experts,
        "n_shared_experts": mixture.shared_size // mixture.expert_size,
        # transformers assumes these two; vLLM and llama.cpp would score by softmax and drop the balancing bias.
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": mixture.groups,
        "topk_group": mixture.top_groups,
        "routed_scaling_factor": mixture.routed_scaling_factor,
        "first_k_dense_replace": config.num_hidden_layers - len(mixture.layers),
        # The modules for multi-token prediction of a checkpoint are not read, so none are written.
        "num_nextn_predict_layers": 0,
    }
