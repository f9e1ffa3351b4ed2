"""Pairs of kind and curt answers, and reward models of a few thousand parameters."""

import random

import polars as pl

from pipeline import chat
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.reward import RewardModel
from pipeline.model.tokenizer import character_tokenizer
from pipeline.params import PairTraining
from pipeline.preference.pairs import Pair, encode_pairs
from pipeline.records import PreferencePair, schema

TOKENIZER = character_tokenizer(chat.CHAT_TEMPLATE)
SPARSE = {
    "model_type": "deepseek_v3", "vocab_size": len(TOKENIZER), "hidden_size": 16, "intermediate_size": 32,
    "moe_intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.0, "norm_topk_prob": True, "first_k_dense_replace": 1, "q_lora_rank": None,
    "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "max_position_embeddings": 128,
    "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "hidden_act": "silu", "initializer_range": 0.1,
    "rope_theta": 10000.0,
}  # fmt: skip


def reward_model(seed: int = 0) -> RewardModel:
    decoder = Decoder(ModelConfig.from_hf(SPARSE))
    decoder.init_weights(seed)
    return RewardModel.on(decoder, "answer", seed)


def table(count: int = 40) -> pl.DataFrame:
    """Kind answers end in an exclamation mark; either may be the longer one."""
    rng = random.Random(0)
    rows = []
    for number in range(count):
        kind, curt = ("a" * rng.randint(2, 9) for _ in range(2))
        rows.append(PreferencePair(f"ask {number}", f"{kind}!", f"{curt}.", "made"))
    return pl.DataFrame(rows, schema=schema(PreferencePair))


def pairs(count: int = 40) -> list[Pair]:
    return encode_pairs(TOKENIZER, table(count))


def options(**changes: object) -> PairTraining:
    return PairTraining.model_validate(
        {"steps": 8, "pairs_per_step": 6, "learning_rate": 0.01, "checkpoint_every": 3, **changes}
    )
