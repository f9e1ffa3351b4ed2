"""Teacher and student must mean the same by a token."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.gkd.teacher import load_teacher
from pipeline.model.checkpoint import save_model
from pipeline.model.tokenizer import save_tokenizer

from .toys import DENSE, SPARSE, VOCABULARY, decoder, tokenizer


def teacher_folder(folder: Path, characters: str) -> Path:
    save_model(decoder(SPARSE, 0, vocab_size=3 + len(characters)), folder)
    save_tokenizer(tokenizer(characters), folder)
    return folder


@pytest.mark.parametrize(
    ("characters", "message"),
    [
        ("abcdefgih", r"2 tokens are not the same for distillation@small .* \('h': 10 and 11\)"),
        ("abcdefgh", r"1 tokens .* \('i': 11 and missing\)"),
        ("abcdefghij", r"1 tokens .* \('j': missing and 12\)"),
    ],
)
def test_another_vocabulary_is_refused_with_both_names(tmp_path: Path, characters: str, message: str) -> None:
    folder = teacher_folder(tmp_path / "teacher", characters)
    with pytest.raises(InputError, match=message) as error:
        load_teacher(folder, tokenizer(), "distillation@small", bfloat16=False)
    assert str(folder) in str(error.value)


def test_the_teacher_learns_nothing(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "teacher", "abcdefghi")
    teacher = load_teacher(folder, tokenizer(), "distillation@small", bfloat16=False)
    assert not teacher.unembedding.requires_grad
    assert teacher.unembedding.shape == (VOCABULARY, SPARSE["hidden_size"])
    assert DENSE["hidden_size"] != SPARSE["hidden_size"]
