"""The benchmark of a GRPO step measures steps that are whole."""

from pathlib import Path

import pytest

from pipeline import chat
from pipeline.bench.grpo import questions, run
from pipeline.errors import InputError
from pipeline.model.checkpoint import save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer, save_tokenizer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    decoder = Decoder(ModelConfig.from_hf({**LLAMA, "vocab_size": len(tokenizer)}))
    decoder.init_weights(0)
    save_model(decoder, tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    return tmp_path


def test_it_says_how_fast_and_how_large(model: Path) -> None:
    figures = run(model, prompts=2, group=3, new_tokens=5, steps=2, dtype="float32")
    assert (figures["batch"], figures["new_tokens"], figures["dtype"]) == (6, 5, "float32")
    assert figures["samples_per_s"] == pytest.approx(6 / figures["step_s"], rel=0.05)
    assert 0 < figures["completion_tokens_per_s"] <= 5 * figures["samples_per_s"] * 1.05
    assert figures["rollout_s"] + figures["update_s"] <= figures["step_s"] * 1.05
    assert figures["peak_rss_mib"] > 0


def test_an_adapter_is_measured_too(model: Path) -> None:
    figures = run(
        model, prompts=2, group=3, new_tokens=5, steps=2, dtype="float32", rank=2, checkpoint_activations=True
    )
    assert figures["samples_per_s"] > 0


def test_prompts_are_bare_sums_and_always_the_same() -> None:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    made = questions(3, tokenizer)
    assert [question.problem.prompt for question in made] == ["59+63+15=?", "43+75+72=?", "61+48+71=?"]
    assert tokenizer.decode(made[0].prompt) == "59+63+15=?"


def test_a_single_step_is_refused(model: Path) -> None:
    with pytest.raises(InputError, match="steps = 1: must be at least 2"):
        run(model, prompts=2, group=3, new_tokens=5, steps=1, dtype="float32")
