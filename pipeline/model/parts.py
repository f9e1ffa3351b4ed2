"""The parts that a model configuration is made of, rope, attention and mixture of experts, read from config.json.

The rope is read in both of its spellings, nested `rope_parameters` and the older `rope_theta` + `rope_scaling`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.model.fields import Fields

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


def read_rope(fields: Fields, max_position_embeddings: int) -> Rope:
    nested = fields.mapping("rope_parameters")
    old = fields.mapping("rope_scaling")
    merged = {"rope_theta": fields.get("rope_theta", 10000.0), **nested, **old}
    rope = Fields(merged, f"{fields.prefix}rope_parameters.", fields.file)
    rope.must_be("partial_rotary_factor", 1)
    rope_type = rope.choice("rope_type" if "rope_type" in merged else "type", ROPE_TYPES, "default")
    theta = rope.number("rope_theta", above=1.0)
    if rope_type == "default":
        return Rope("default", theta)
    factor = rope.number("factor", above=0.0)
    if rope_type == "linear":
        return Rope("linear", theta, factor)
    known = "original_max_position_embeddings"
    whose = rope if fields.get(known) is None else fields  # as transformers has it, what stands outside goes first
    original = whose.integer(known, max_position_embeddings)
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


def write_rope(rope: Rope) -> dict[str, Any]:
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


def read_grouped(fields: Fields, model_type: str, heads: int) -> GroupedAttention:
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


def read_latent(fields: Fields, heads: int) -> LatentAttention:
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


def read_mixture(fields: Fields, model_type: str, layers: int) -> Mixture | None:
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
