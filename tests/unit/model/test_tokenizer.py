from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.errors import InputError
from pipeline.model.tokenizer import CHARACTERS, SPECIAL, character_tokenizer, load_tokenizer, save_tokenizer

TEMPLATE = "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
TOKENIZER = character_tokenizer(TEMPLATE)


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
