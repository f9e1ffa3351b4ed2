"""What a model starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pydantic import TypeAdapter

from pipeline import chat
from pipeline.errors import InputError
from pipeline.model.checkpoint import save_model
from pipeline.model.remote import checkpoint_digest
from pipeline.model.tokenizer import save_tokenizer
from pipeline.params import Base
from pipeline.records import Problem, Trace, schema
from pipeline.training.pretraining import Start, obtain

PRETRAIN = {
    "kind": "pretrain",
    "model": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "tie_word_embeddings": True,
    },
    "corpus": {"documents": 50, "worked": 0.5, "families": {"sum": 1.0}},
    "train": {"steps": 3, "tokens_per_step": 300, "learning_rate": 1e-2},
}  # fmt: skip

CURATED = PRETRAIN | {
    "tokenizer": {"kind": "byte_pair", "vocabulary": 275},
    "corpus": {"kind": "curated", "documents": 30, "worked": 0.5},
}
PROBLEMS = pl.DataFrame(
    [Problem(f"{n}", "own", "egg", f"Ann has {n} eggs.", f"{n}", "numeric", "en", None, "train") for n in range(10)],
    schema=schema(Problem),
)
TRACES = pl.DataFrame([Trace(f"{n}", f"eggs: {n}", f"{n}", "own") for n in range(10)], schema=schema(Trace))


def start(base: Mapping[str, Any], scratch: Path, seed: int = 0) -> Start:
    options: Base = TypeAdapter(Base).validate_python(base)
    return obtain(
        options,
        seed=seed,
        held_out=0.1,
        curated=lambda: (PROBLEMS, TRACES),
        scratch=scratch,
        log=lambda figures, step: None,
        title="test",
    )


def same(first: Start, second: Start) -> bool:
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_pretraining_is_a_function_of_its_options_and_the_seed(tmp_path: Path) -> None:
    made = [start(PRETRAIN, tmp_path / str(number), seed) for number, seed in enumerate((0, 0, 1))]
    assert same(made[0], made[1])
    assert not same(made[0], made[2])
    assert made[0].model.config.vocab_size == len(made[0].tokenizer)
    assert set(made[0].figures) == {"loss", "tokens"}


def test_a_base_learns_its_own_words_from_curated_text(tmp_path: Path) -> None:
    made = [start(CURATED, tmp_path / str(number)) for number in range(2)]
    assert same(*made)
    assert made[0].model.config.vocab_size == len(made[0].tokenizer) == 275
    assert " eggs" in {made[0].tokenizer.decode([token]) for token in range(275)}
    assert made[0].tokenizer.get_vocab() == made[1].tokenizer.get_vocab()


def test_other_corpora_do_without_curation(tmp_path: Path) -> None:
    def refuse() -> tuple[pl.DataFrame, pl.DataFrame]:
        raise AssertionError("read")

    options: Base = TypeAdapter(Base).validate_python(PRETRAIN)
    obtain(
        options, seed=0, held_out=0.1, curated=refuse, scratch=tmp_path, log=lambda figures, step: None, title="test"
    )


def test_a_checkpoint_is_taken_as_it_is_with_this_recipes_template(tmp_path: Path) -> None:
    made = start(PRETRAIN, tmp_path / "scratch")
    folder = tmp_path / "model"
    save_model(made.model, folder)
    made.tokenizer.chat_template = "another"
    save_tokenizer(made.tokenizer, folder)
    base = {"kind": "checkpoint", "source": str(folder), "digest": checkpoint_digest(folder)}
    taken = start(base, tmp_path / "other")
    assert same(made, taken)
    assert taken.tokenizer.chat_template == chat.CHAT_TEMPLATE
    assert taken.figures == {}
    with pytest.raises(InputError, match="digest"):
        start({**base, "digest": "0" * 64}, tmp_path / "third")
