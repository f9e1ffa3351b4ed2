"""Generation against one-by-one greedy decoding without a cache, and its independence of the batch."""

import pytest
import torch

from pipeline import chat
from pipeline.errors import InputError
from pipeline.generation import generate as module
from pipeline.generation.generate import generate
from pipeline.model.attention import PackedSequences
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer
from pipeline.params import Sampling

TOKENIZER = character_tokenizer(chat.CHAT_TEMPLATE)
PROMPTS = ["1+1=?", "reverse banana", "123+4567+89=?", "7"]


@pytest.fixture(scope="module")
def model() -> Decoder:
    config = {
        "model_type": "qwen3",
        "vocab_size": len(TOKENIZER),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }
    decoder = Decoder(ModelConfig.from_hf(config))
    decoder.init_weights(0)
    return decoder


def _texts(model: Decoder, prompts: list[str], options: Sampling, samples: int = 1, seed: int = 0) -> list[list[str]]:
    found = generate(model, TOKENIZER, prompts, options, samples=samples, seed=seed, title="test")
    return [[completion.text for completion in completions] for completions in found]


@torch.inference_mode()
def _greedy(model: Decoder, prompt: str, limit: int) -> str:
    tokens = TOKENIZER.encode(prompt, add_special_tokens=False)
    start = len(tokens)
    while len(tokens) < start + limit:
        flat = torch.tensor(tokens)
        hidden = model(flat, torch.arange(len(tokens)), PackedSequences([len(tokens)])).hidden
        token = int(model.logits(hidden[-1]).argmax())
        if token == TOKENIZER.eos_token_id:
            break
        tokens.append(token)
    return str(TOKENIZER.decode(tokens[start:]))


def test_greedy_equals_decoding_without_a_cache(model: Decoder) -> None:
    texts = _texts(model, PROMPTS, Sampling(temperature=0.0, max_new_tokens=24))
    assert texts == [[_greedy(model, prompt, 24)] for prompt in PROMPTS]


def test_a_text_does_not_depend_on_what_else_is_in_the_batch(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Sampling(temperature=1.0, max_new_tokens=16)
    together = _texts(model, PROMPTS, options, samples=3)
    monkeypatch.setattr(module, "SLOTS", 2)
    assert _texts(model, PROMPTS, options, samples=3) == together
    assert [_texts(model, [prompt], options, samples=3)[0] for prompt in PROMPTS] == together


def test_samples_and_seeds_differ(model: Decoder) -> None:
    options = Sampling(temperature=1.0, max_new_tokens=16)
    texts = {*_texts(model, PROMPTS[:1], options, samples=3)[0], *_texts(model, PROMPTS[:1], options, seed=1)[0]}
    assert len(texts) == 4


def test_the_limit_cuts_and_the_end_token_ends(model: Decoder) -> None:
    options = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=30)
    found = [c for row in generate(model, TOKENIZER, PROMPTS, options, samples=40, seed=0, title="test") for c in row]
    assert {completion.finish for completion in found} == {"end", "length"}
    for completion in found:
        assert chat.EOS not in completion.text
        assert len(completion.tokens) <= 30
        assert len(completion.tokens) == 30 or completion.finish == "end"


def test_a_prompt_that_leaves_no_room_is_refused(model: Decoder) -> None:
    with pytest.raises(InputError, match=r"prompt of 100 tokens and max_new_tokens = 64 of '111.*max_length = 128"):
        _texts(model, ["1" * 100], Sampling(max_new_tokens=64))


def test_no_prompts_are_no_completions(model: Decoder) -> None:
    assert _texts(model, [], Sampling()) == []
