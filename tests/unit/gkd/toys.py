"""A student and a teacher of a few thousand parameters, and examples for them."""

from collections.abc import Mapping

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.params import OnPolicy
from pipeline.training.batches import Example

CHARACTERS = "abcdefghi"
VOCABULARY = 3 + len(CHARACTERS)
SPARSE = {
    "model_type": "deepseek_v3", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32,
    "moe_intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.0, "norm_topk_prob": True, "first_k_dense_replace": 1, "q_lora_rank": None,
    "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "max_position_embeddings": 64,
    "tie_word_embeddings": True, "initializer_range": 0.3,
}  # fmt: skip
DENSE = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 12, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "tie_word_embeddings": True, "initializer_range": 0.1,
}  # fmt: skip


def tokenizer(characters: str = CHARACTERS) -> PreTrainedTokenizerFast:
    names = ["<pad>", "<bos>", "<eos>", *characters]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def decoder(config: Mapping[str, object], seed: int, **changes: object) -> Decoder:
    model = Decoder(ModelConfig.from_hf({**config, **changes}))
    model.init_weights(seed)
    return model


def options(**changes: object) -> OnPolicy:
    return OnPolicy.model_validate(
        {
            "steps": 6, "prompts": 4, "lambda": 0.5, "max_new_tokens": 6, "learning_rate": 0.02, "warmup": 0.0,
            "checkpoint_every": 2, **changes,
        }
    )  # fmt: skip


def examples(count: int = 10) -> list[Example]:
    """Prompts of two to four tokens, each with a completion of three and the end."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        prompt = int(rng.integers(2, 5))
        tokens = np.concatenate([[1], rng.integers(3, VOCABULARY, prompt + 2), [2]]).astype(np.int64)
        made.append(Example(tokens, np.arange(len(tokens)) >= prompt))
    return made


def weights(model: Decoder) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())
