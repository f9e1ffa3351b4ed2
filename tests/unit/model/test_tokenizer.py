import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.errors import InputError
from pipeline.model.tokenizer import (
    CHARACTERS,
    SPECIAL,
    byte_pair_tokenizer,
    character_tokenizer,
    load_tokenizer,
    portable,
    save_tokenizer,
)
from pipeline.params import BytePairTokens

TEMPLATE = "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
TOKENIZER = character_tokenizer(TEMPLATE)
PORTABLE = portable(TOKENIZER)
TEXTS = [f"<bos><|user|>Ann has {n} eggs and sells {n // 2} of them, as her hens lay more.<eos>" for n in range(10, 60)]
BYTE_PAIRS = byte_pair_tokenizer(TEMPLATE, TEXTS, 298)


@given(st.lists(st.sampled_from([*CHARACTERS, *SPECIAL[1:]]), max_size=60))
def test_text_comes_back_as_it_was_one_token_per_piece(pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = TOKENIZER(text).input_ids
    assert TOKENIZER.decode(ids) == text
    assert len(ids) <= len(pieces)


def test_every_character_and_mark_is_one_token_and_no_other_is() -> None:
    ids = [TOKENIZER(piece).input_ids for piece in (*SPECIAL, *CHARACTERS)]
    assert ids == [[index] for index in range(len(TOKENIZER))]
    assert TOKENIZER("é").input_ids == [TOKENIZER.pad_token_id]


def test_the_template_travels_with_the_tokenizer(tmp_path: Path) -> None:
    save_tokenizer(TOKENIZER, tmp_path)
    conversation = [{"role": "user", "content": "1+1=?"}]
    for again in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert again.apply_chat_template(conversation, tokenize=False) == "<bos><|user|>1+1=?"
        assert again.get_vocab() == TOKENIZER.get_vocab()
        assert (again.pad_token, again.bos_token, again.eos_token) == ("<pad>", "<bos>", "<eos>")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: not found"):
        load_tokenizer(tmp_path)


@given(st.text(), st.lists(st.sampled_from(SPECIAL), max_size=3), st.text())
def test_byte_pairs_give_every_text_back(before: str, marks: list[str], after: str) -> None:
    text = before + "".join(marks) + after
    ids = BYTE_PAIRS(text).input_ids
    assert BYTE_PAIRS.decode(ids) == text
    assert max(ids, default=0) < len(BYTE_PAIRS)


def test_byte_pairs_keep_marks_whole_and_digits_single() -> None:
    assert [BYTE_PAIRS(mark).input_ids for mark in SPECIAL] == [[index] for index in range(len(SPECIAL))]
    vocabulary = BYTE_PAIRS.get_vocab()
    assert len(vocabulary) == len(BYTE_PAIRS) == 298
    assert "eggs" in {token.strip("\u0120") for token in vocabulary}  # how byte-level tokens write a blank
    assert not [token for token in vocabulary if len(token) > 1 and any(map(str.isdigit, token))]
    assert len(BYTE_PAIRS("1234").input_ids) == 4


def test_byte_pairs_are_those_of_the_text_between_the_marks() -> None:
    bare = byte_pair_tokenizer(TEMPLATE, ["ab ab", "cd cd"], 268).get_vocab()
    marked = byte_pair_tokenizer(TEMPLATE, ["<think>ab ab</think><answer>cd cd</answer>"], 268).get_vocab()
    assert bare == marked


def test_the_same_texts_give_the_same_byte_pairs(tmp_path: Path) -> None:
    assert byte_pair_tokenizer(TEMPLATE, iter(TEXTS), 298).backend_tokenizer.to_str() == (
        BYTE_PAIRS.backend_tokenizer.to_str()
    )
    save_tokenizer(BYTE_PAIRS, tmp_path)
    for again in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert again("Ann \u00e9\u2713 12").input_ids == BYTE_PAIRS("Ann \u00e9\u2713 12").input_ids
        assert again.get_vocab() == BYTE_PAIRS.get_vocab()
        assert again.chat_template == TEMPLATE


def test_a_vocabulary_that_the_corpus_does_not_fill_is_refused() -> None:
    with pytest.raises(InputError, match=r"tokenizer\.vocabulary: 5000: the corpus gives \d+ tokens; must be at most"):
        byte_pair_tokenizer(TEMPLATE, TEXTS, 5000)
    least = len(SPECIAL) + 256
    assert byte_pair_tokenizer(TEMPLATE, [], least).vocab_size == least
    BytePairTokens(kind="byte_pair", vocabulary=least)
    with pytest.raises(ValueError, match=f"greater than or equal to {least}"):
        BytePairTokens(kind="byte_pair", vocabulary=least - 1)


@given(st.lists(st.sampled_from([*CHARACTERS, *SPECIAL, "é", "🚀"])))
def test_characters_as_bytes_are_the_same_tokens(pieces: list[str]) -> None:
    text = "".join(pieces)
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    assert PORTABLE.encode(text, add_special_tokens=False) == tokens
    assert PORTABLE.decode(tokens) == TOKENIZER.decode(tokens)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "llama", "qwen2", "qwen3", "qwen3_moe"])
def test_no_architecture_changes_how_a_release_is_read(tmp_path: Path, model_type: str) -> None:
    save_tokenizer(PORTABLE, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    text = "<|user|>1 + 2 = ?\n I've 33<|assistant|><think>"
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.encode(text, add_special_tokens=False) == TOKENIZER.encode(text, add_special_tokens=False)
    assert read.decode(read.encode(text, add_special_tokens=False)) == text


def test_byte_pairs_are_portable_already() -> None:
    assert portable(BYTE_PAIRS) is BYTE_PAIRS
