"""What a decoder is built from, read out of and written into a Hugging Face config.json.

Five model types share one shape here: an attention (latent or grouped), an optional mixture of experts, a rope.
Different from transformers: a value that would be silently ignored there or here (an active sliding window, a
quantised checkpoint, a rope type we do not compute) is refused by name, and the rope is read in both of its
spellings, nested `rope_parameters` and the older `rope_theta` + `rope_scaling`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.model.fields import Fields

ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "llama": "LlamaForCausalLM",
}
ROPE_TYPES = ("default", "linear", "yarn", "llama3")
# A rope that reaches beyond the trained length starts from this length, and these types cannot do without it.
STRETCHED = ("yarn", "llama3")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: the base of its frequencies, and how they are stretched for long contexts."""

    rope_type: Literal["default", "linear", "yarn", "llama3"]
    rope_theta: float
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True)
class GroupedAttention:
    """Multi-head attention whose queries share `num_key_value_heads` keys and values."""

    num_key_value_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention, DeepSeek-V3 report section 2.1.1. `q_lora_rank` None: queries are not compressed."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_interleave: bool
    bias: bool


@dataclass(frozen=True)
class Mixture:
    """Routed experts: which layers have them, how many, and how a token chooses among them.

    `scoring` sigmoid is DeepSeek-V3's router with its balancing bias and groups, softmax is Qwen3's.
    `shared_size` is the width of the expert that every token passes through, 0 for none.
    """

    layers: tuple[int, ...]
    experts: int
    top_k: int
    expert_size: int
    shared_size: int
    scoring: Literal["sigmoid", "softmax"]
    norm_topk_prob: bool
    groups: int = 1
    top_groups: int = 1
    routed_scaling_factor: float = 1.0


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
        fields = Fields(config)
        model_type = fields.choice("model_type", tuple(ARCHITECTURES))
        _refuse_what_we_do_not_compute(fields)
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
            rope=_read_rope(fields, positions),
            attention=_read_latent(fields, heads) if latent else _read_grouped(fields, model_type, heads),
            mixture=_read_mixture(fields, model_type, layers),
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
            "rope_parameters": _write_rope(self.rope),
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
    fields.must_be("quantization_config", None)
    fields.must_be("partial_rotary_factor", 1)
    sliding = fields.flag("use_sliding_window", False) and fields.get("sliding_window") is not None
    # Of the Qwen dense models only the layers from max_window_layers on slide; of the sparse ones all do.
    if sliding and fields.integer("max_window_layers", 0, minimum=0) < fields.integer("num_hidden_layers"):
        fields.refuse("sliding_window", "must be null: attention here looks at the whole sequence")
    layer_types = fields.get("layer_types", [])
    if not isinstance(layer_types, list | tuple) or any(kind != "full_attention" for kind in layer_types):
        fields.refuse("layer_types", "must all be full_attention: attention here looks at the whole sequence")


def _read_rope(fields: Fields, max_position_embeddings: int) -> Rope:
    nested = fields.mapping("rope_parameters")
    old = fields.mapping("rope_scaling")
    merged = {"rope_theta": fields.get("rope_theta", 10000.0), **nested, **old}
    rope = Fields(merged, "rope_parameters.")
    rope.must_be("partial_rotary_factor", 1)
    rope_type = rope.choice("rope_type" if "rope_type" in merged else "type", ROPE_TYPES, "default")
    theta = rope.number("rope_theta", above=1.0)
    if rope_type == "default":
        return Rope("default", theta)
    factor = rope.number("factor", above=0.0)
    if rope_type == "linear":
        return Rope("linear", theta, factor)
    original = rope.integer("original_max_position_embeddings", max_position_embeddings)
    if rope_type == "llama3":
        low = rope.number("low_freq_factor", above=0.0)
        high = rope.number("high_freq_factor", above=low)
        return Rope("llama3", theta, factor, original, low_freq_factor=low, high_freq_factor=high)
    return Rope(
        "yarn",
        theta,
        factor,
        original,
        beta_fast=rope.number("beta_fast", 32.0, above=0.0),
        beta_slow=rope.number("beta_slow", 1.0, above=0.0),
        mscale=rope.number("mscale", 0.0),
        mscale_all_dim=rope.number("mscale_all_dim", 0.0),
        attention_factor=None if rope.get("attention_factor") is None else rope.number("attention_factor"),
        truncate=rope.flag("truncate", True),
    )


def _write_rope(rope: Rope) -> dict[str, Any]:
    written: dict[str, Any] = {"rope_type": rope.rope_type, "rope_theta": rope.rope_theta}
    if rope.rope_type != "default":
        written["factor"] = rope.factor
    if rope.rope_type in STRETCHED:
        written["original_max_position_embeddings"] = rope.original_max_position_embeddings
    if rope.rope_type == "llama3":
        written |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.rope_type == "yarn":
        written |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        # Absent and zero mean the same to every reader of these two; absent is the usual spelling.
        written |= {key: value for key in ("mscale", "mscale_all_dim") if (value := getattr(rope, key))}
        if rope.attention_factor is not None:
            written["attention_factor"] = rope.attention_factor
    return written


def _read_grouped(fields: Fields, model_type: str, heads: int) -> GroupedAttention:
    hidden = fields.integer("hidden_size")
    # Qwen3's own default head is 128 wide; the other types divide the hidden size.
    head_dim = fields.integer("head_dim", 128 if model_type == "qwen3" else hidden // heads)
    if head_dim % 2:
        fields.refuse("head_dim", f"must be even for rotary embedding (derived: {head_dim})")
    key_value_heads = fields.integer("num_key_value_heads", heads)
    if heads % key_value_heads:
        fields.refuse("num_key_value_heads", f"must divide num_attention_heads = {heads}")
    bias = model_type != "qwen2" and fields.flag("attention_bias", False)
    return GroupedAttention(
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        qkv_bias=bias or model_type == "qwen2",
        output_bias=bias,
        qk_norm=model_type in ("qwen3", "qwen3_moe"),
    )


def _read_latent(fields: Fields, heads: int) -> LatentAttention:
    if fields.integer("num_key_value_heads", heads) != heads:
        fields.refuse("num_key_value_heads", f"must equal num_attention_heads = {heads} in latent attention")
    rope_dim = fields.integer("qk_rope_head_dim")
    if rope_dim % 2:
        fields.refuse("qk_rope_head_dim", "must be even for rotary embedding")
    return LatentAttention(
        q_lora_rank=None if fields.get("q_lora_rank") is None else fields.integer("q_lora_rank"),
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_nope_head_dim=fields.integer("qk_nope_head_dim"),
        qk_rope_head_dim=rope_dim,
        v_head_dim=fields.integer("v_head_dim"),
        rope_interleave=fields.flag("rope_interleave", True),
        bias=fields.flag("attention_bias", False),
    )


def _read_mixture(fields: Fields, model_type: str, layers: int) -> Mixture | None:
    if model_type == "deepseek_v3":
        return _read_deepseek_mixture(fields, layers)
    if model_type == "qwen3_moe":
        return _read_qwen_mixture(fields, layers)
    return None


def _read_deepseek_mixture(fields: Fields, layers: int) -> Mixture:
    fields.must_be("scoring_func", "sigmoid")
    fields.must_be("topk_method", "noaux_tc")
    fields.must_be("moe_layer_freq", 1)
    experts = fields.integer("n_routed_experts", minimum=2)
    groups = fields.integer("n_group")
    # A group is ranked by its two best experts, so it needs two.
    if experts % groups or experts // groups < 2:
        fields.refuse("n_group", f"must split n_routed_experts = {experts} into equal groups of at least 2")
    top_groups = fields.integer("topk_group")
    if top_groups > groups:
        fields.refuse("topk_group", f"must be at most n_group = {groups}")
    reachable = top_groups * (experts // groups)
    top_k = fields.integer("num_experts_per_tok")
    if top_k > reachable:
        fields.refuse("num_experts_per_tok", f"must be at most the {reachable} experts of topk_group groups")
    expert_size = fields.integer("moe_intermediate_size")
    return Mixture(
        layers=tuple(range(fields.integer("first_k_dense_replace", minimum=0), layers)),
        experts=experts,
        top_k=top_k,
        expert_size=expert_size,
        shared_size=fields.integer("n_shared_experts") * expert_size,
        scoring="sigmoid",
        norm_topk_prob=fields.flag("norm_topk_prob", True),
        groups=groups,
        top_groups=top_groups,
        routed_scaling_factor=fields.number("routed_scaling_factor", above=0.0),
    )


def _read_qwen_mixture(fields: Fields, layers: int) -> Mixture:
    # transformers 5 renamed num_experts; checkpoints of both spellings are about.
    experts = fields.integer("num_experts" if fields.get("num_experts") is not None else "num_local_experts")
    top_k = fields.integer("num_experts_per_tok")
    if top_k > experts:
        fields.refuse("num_experts_per_tok", f"must be at most num_experts = {experts}")
    step = fields.integer("decoder_sparse_step", 1)
    dense = fields.integers("mlp_only_layers")
    return Mixture(
        layers=tuple(layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0),
        experts=experts,
        top_k=top_k,
        expert_size=fields.integer("moe_intermediate_size"),
        shared_size=0,
        scoring="softmax",
        norm_topk_prob=fields.flag("norm_topk_prob", False),
    )


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
        "n_group": mixture.groups,
        "topk_group": mixture.top_groups,
        "routed_scaling_factor": mixture.routed_scaling_factor,
        "first_k_dense_replace": config.num_hidden_layers - len(mixture.layers),
        # The modules for multi-token prediction of a checkpoint are not read, so none are written.
        "num_nextn_predict_layers": 0,
    }
