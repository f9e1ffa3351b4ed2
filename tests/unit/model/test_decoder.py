import pytest
import torch

from pipeline.model.attention import PackedSequences
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder, ModelSize

from .reference import COMMON, decoder, positions_of, random_sequences

TINY_MOE = {
    "model_type": "deepseek_v3",
    "vocab_size": 103,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def test_size_counts_k_of_e_routed_experts_and_all_the_rest() -> None:
    with torch.device("meta"):
        model = Decoder(ModelConfig.from_hf(TINY_MOE))
    assert model.size() == ModelSize(total=9_894_144, activated=604_416)


@pytest.mark.parametrize("case", ["qwen2-tied", "llama-grouped"])
def test_every_parameter_of_a_dense_model_is_activated(case: str) -> None:
    size = decoder(case).size()
    assert size.total == size.activated


def test_initial_weights_follow_the_seed_alone() -> None:
    first, second, other = (decoder("deepseek-plain") for _ in range(3))
    first.init_weights(seed=3)
    torch.randn(5)  # the global generator has no say
    second.init_weights(seed=3)
    other.init_weights(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.unembedding, other.unembedding)
    assert first.unembedding.std().item() == pytest.approx(COMMON["initializer_range"], rel=0.1)
    assert (first.norm.weight == 1).all()


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not() -> None:
    assert (tied := decoder("qwen2-tied")).unembedding is tied.embed_tokens.weight
    assert (untied := decoder("qwen2-yarn")).unembedding is untied.lm_head.weight


def test_casting_keeps_the_balancing_bias_in_float32() -> None:
    model = decoder("deepseek-plain")
    model.init_weights(seed=0)
    next(model.buffers()).fill_(0.001)
    model.cast(torch.bfloat16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())
    assert next(model.buffers())[0].item() == pytest.approx(0.001)


@pytest.mark.parametrize("case", ["deepseek-plain", "qwen3-moe", "llama-biases-tied"])
def test_bfloat16_says_about_the_same_by_cast_and_by_autocast(case: str) -> None:
    model = decoder(case)
    model.init_weights(seed=1)
    lengths = [12, 40]
    inputs = (torch.cat(random_sequences(lengths)), positions_of(lengths), PackedSequences(lengths))
    with torch.no_grad():
        wide = model(*inputs).hidden
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(*inputs).hidden
        narrow = model.cast(torch.bfloat16)(*inputs).hidden
    for output in (mixed, narrow):
        # Rounding moves a few tokens to another expert; the rest stays close.
        assert (output.float() - wide).abs().median() < 0.05
