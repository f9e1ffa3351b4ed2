import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.model.config import ARCHITECTURES, ModelConfig
from pipeline.model.packed_layout import CONFIG

from .reference import CASES, FAMILIES, LLAMA3, YARN, config_of


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_we_read_back(case: str) -> None:
    config = ModelConfig.from_hf(config_of(case))
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("case", CASES)
def test_transformers_and_we_read_each_other(case: str) -> None:
    config_class, _ = FAMILIES[CASES[case][0]]
    ours = ModelConfig.from_hf(config_of(case))
    theirs = config_class(**ours.to_hf())
    assert ModelConfig.from_hf(theirs.to_dict()) == ours


def test_an_unknown_model_type_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError) as error:
        ModelConfig.from_hf({"model_type": "mamba2"})
    assert "'mamba2'" in str(error.value)
    assert all(name in str(error.value) for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_type": "default"}),
        ({"rope_theta": 500.0, "rope_scaling": {**LLAMA3, "rope_theta": None}}, LLAMA3),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, YARN),
        ({"rope_scaling": None}, {"rope_theta": 10000.0, "rope_type": "default"}),
    ],
)
def test_both_spellings_of_the_rope_mean_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    plain = config_of("qwen2-tied")
    assert ModelConfig.from_hf({**plain, **old}) == ModelConfig.from_hf({**plain, "rope_parameters": new})


def test_both_spellings_of_the_expert_count_mean_the_same() -> None:
    config = config_of("qwen3-moe")
    renamed = {("num_local_experts" if key == "num_experts" else key): value for key, value in config.items()}
    assert ModelConfig.from_hf(renamed) == ModelConfig.from_hf(config)


REFUSED = [
    ("llama-grouped", {"hidden_size": "32"}, "hidden_size = '32'"),
    ("llama-grouped", {"num_hidden_layers": 0}, "at least 1"),
    ("llama-grouped", {"num_hidden_layers": True}, "whole number"),
    ("llama-grouped", {"vocab_size": None}, "vocab_size = None"),
    ("llama-grouped", {"num_key_value_heads": 3}, "must divide num_attention_heads = 4"),
    ("llama-grouped", {"head_dim": 7}, "even"),
    ("llama-grouped", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("llama-grouped", {"rms_norm_eps": float("nan")}, "finite"),
    ("llama-grouped", {"tie_word_embeddings": "yes"}, "true or false"),
    ("llama-grouped", {"attention_dropout": 0.1}, "attention_dropout"),
    ("llama-grouped", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ("llama-grouped", {"quantization_config": {"config_groups": None}}, "quantization_config"),
    ("llama-grouped", {"quantization_config": ["int8"]}, "quantization_config"),
    ("llama-grouped", {"quantization_config": {**CONFIG, "kv_cache_scheme": {"num_bits": 8}}}, "quantization_config"),
    ("llama-grouped", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type = 'longrope'"),
    ("llama-grouped", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "default, linear, yarn, llama3"),
    ("llama-grouped", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor"),
    ("llama-grouped", {"rope_parameters": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
    ("llama-grouped", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary"),
    ("llama-grouped", {"rope_parameters": "default"}, "must be an object"),
    (
        "qwen2-tied",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
        "use_sliding_window =",
    ),
    ("qwen3-bias", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
    ("qwen3-bias", {"layer_types": 3}, "layer_types = 3"),
    ("qwen2-tied", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": "all"}, "max_window_layers"),
    ("qwen3-moe", {"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window ="),
    ("qwen3-moe", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 99}, "use_sliding_window"),
    ("qwen2-tied", {"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window"),
    ("qwen3-moe", {"num_experts_per_tok": 13}, "at most num_experts = 12"),
    ("qwen3-moe", {"mlp_only_layers": "1"}, "list of whole numbers"),
    ("deepseek-plain", {"n_group": 3}, "equal groups"),
    ("deepseek-plain", {"n_group": 16}, "at least 2"),
    ("deepseek-query-latent-groups", {"topk_group": 5}, "n_group = 4"),
    ("deepseek-query-latent-groups", {"num_experts_per_tok": 9}, "at most the 8 experts"),
    ("deepseek-plain", {"num_key_value_heads": 2}, "latent attention"),
    ("deepseek-plain", {"scoring_func": "softmax"}, "scoring_func"),
    ("deepseek-plain", {"n_shared_experts": 0}, "n_shared_experts"),
    ("deepseek-plain", {"q_lora_rank": 0}, "q_lora_rank"),
]


@pytest.mark.parametrize(("case", "change", "said"), REFUSED)
def test_a_wrong_value_is_named_with_its_rule(case: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        ModelConfig.from_hf({**config_of(case), **change})
    assert said in str(error.value)
    assert str(error.value).startswith("config.json: ")


@given(st.sampled_from(sorted(CASES)), st.data())
def test_a_damaged_config_is_read_or_refused_but_never_crashes(case: str, data: st.DataObject) -> None:
    config = config_of(case)
    key = data.draw(st.sampled_from(sorted(config)))
    value = data.draw(
        st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text() | st.just([]) | st.just({})
    )
    with contextlib.suppress(InputError):
        ModelConfig.from_hf({**config, key: value})
