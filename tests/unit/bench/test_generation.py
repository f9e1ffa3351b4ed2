from pathlib import Path

import pytest

from pipeline import chat
from pipeline.bench.generation import run
from pipeline.model.checkpoint import save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer, save_tokenizer
from tests.unit.model.reference import config_of


def test_it_counts_what_was_generated(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    config = config_of("deepseek-plain") | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = Decoder(ModelConfig.from_hf(config))
    model.init_weights(0)
    save_model(model, tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    figures = run(tmp_path, prompts=2, group=3, new_tokens=4, dtype="float32")
    seconds, samples = float(figures["seconds"]), float(figures["samples_per_s"])
    tokens = float(figures["completion_tokens_per_s"])
    assert samples * seconds == pytest.approx(6, rel=0.01)
    assert 1 <= round(tokens / samples, 2) <= 4
    assert figures["batch"] == 6
