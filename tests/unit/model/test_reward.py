"""A reward model's scores are those of transformers on the same checkpoint, and an answer's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from pipeline import chat
from pipeline.errors import InputError
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.reward import RewardModel, Scale, load_reward, save_reward
from pipeline.model.tokenizer import character_tokenizer, load_tokenizer, save_tokenizer

from .reference import CASES

TOKENIZER = character_tokenizer(chat.CHAT_TEMPLATE)
COMMON = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.15,
}  # fmt: skip
DENSE_UNTIED = {"model_type": "qwen2", **COMMON, "num_key_value_heads": 2, "tie_word_embeddings": False}
ARCHITECTURES = {
    "sparse": {"model_type": "deepseek_v3", **COMMON, **CASES["deepseek-plain"][1]},
    "dense, untied": DENSE_UNTIED,
}
PAIRS = [
    ("Thank Ann.", "<think>thank</think><answer>Thank you, Ann!</answer>"),
    ("Thank Ann.", "<think></think><answer>No.</answer>"),
    ("1+1=?", "<think>1+1;2</think><answer>2</answer>"),
]


def reward_model(config: dict[str, object] = DENSE_UNTIED, judges: str = "answer") -> RewardModel:
    decoder = Decoder(ModelConfig.from_hf(config))
    decoder.init_weights(seed=1)
    model = RewardModel.on(decoder, judges, seed=2)  # type: ignore[arg-type]
    model.scale = Scale(model.scale.judges, mean=0.1, std=0.5)
    return model.eval()


def texts(model: RewardModel) -> list[str]:
    found = [model.text(*pair, bos="<bos>", eos="<eos>") for pair in PAIRS]
    return [text for text in found if text is not None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_gives_the_same_scores(architecture: str, tmp_path: Path) -> None:
    ours = reward_model(ARCHITECTURES[architecture])
    save_reward(ours, TOKENIZER, tmp_path / "model")
    save_tokenizer(TOKENIZER, tmp_path / "model")
    theirs, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(theirs).__name__.endswith("ForSequenceClassification")
    assert theirs.config.num_labels == 1
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = load_tokenizer(tmp_path / "model")(texts(ours), add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(1)
    tokens = [np.array(TOKENIZER.encode(text, add_special_tokens=False)) for text in texts(ours)]
    torch.testing.assert_close(ours.raw_scores(tokens), expected, atol=2e-5, rtol=1e-4)
    assert expected.std() > 0.01  # they could differ


def test_what_was_saved_is_loaded_and_the_scale_with_it(tmp_path: Path) -> None:
    model = reward_model(ARCHITECTURES["sparse"], judges="output")
    save_reward(model, TOKENIZER, tmp_path / "model")
    loaded = load_reward(tmp_path / "model")
    assert loaded.scale == model.scale
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.scores(TOKENIZER, PAIRS) == model.scores(TOKENIZER, PAIRS)


def test_an_answer_is_scored_alone() -> None:
    model = reward_model(ARCHITECTURES["sparse"])
    alone = [model.scores(TOKENIZER, [pair])[0] for pair in PAIRS]
    for order in ([0, 1, 2], [2, 0, 1], [1, 0]):
        together = model.scores(TOKENIZER, [PAIRS[place] for place in order])
        assert together == pytest.approx([alone[place] for place in order], abs=1e-5)


def test_a_reward_is_the_scaled_score_between_0_and_1() -> None:
    model = reward_model()
    raw = model.raw_scores([np.array(TOKENIZER.encode(text, add_special_tokens=False)) for text in texts(model)])
    assert model.scores(TOKENIZER, PAIRS) == pytest.approx(torch.sigmoid((raw.double() - 0.1) / 0.5).tolist())


def test_only_the_answer_is_judged_or_all_of_the_output() -> None:
    answer, output = reward_model(), reward_model(judges="output")
    thoughts = [("Hi", f"<think>{thinking}</think><answer>Hello!</answer>") for thinking in ("", "kindly now")]
    first, second = answer.scores(TOKENIZER, thoughts)
    assert first == second
    first, second = output.scores(TOKENIZER, thoughts)
    assert first != second
    assert answer.text(*thoughts[1], bos="<bos>", eos="<eos>") == (
        "<bos><|user|>Hi<|assistant|><think></think><answer>Hello!</answer><eos>"
    )


def test_without_an_answer_there_is_nothing_to_like() -> None:
    malformed = [("Hi", text) for text in ("Hello!", "<think>a<answer>b</answer>", "", "<think></think><answer>b")]
    assert reward_model().scores(TOKENIZER, malformed) == [0.0] * 4
    assert all(reward_model(judges="output").scores(TOKENIZER, malformed))
    assert reward_model().scores(TOKENIZER, []) == []


def test_a_folder_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(InputError, match="is not a reward model"):
        load_reward(folder)
    save_reward(reward_model(), TOKENIZER, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in weights.items() if name != "score.weight"}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"score\.weight.*1 are not"):
        load_reward(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match="is not a reward model"):
        load_reward(folder)
    save_reward(reward_model(), TOKENIZER, folder)
    (folder / "reward.json").write_text(json.dumps({"judges": "answer"})[:-2])
    with pytest.raises(InputError, match="is not a reward model"):
        load_reward(folder)
