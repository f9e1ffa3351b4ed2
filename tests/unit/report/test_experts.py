"""The map of experts is measured once, and only where there are experts."""

from pathlib import Path

import polars as pl
import pytest

from pipeline import chat
from pipeline.model.checkpoint import save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer, save_tokenizer
from pipeline.report import experts
from pipeline.report.experts import expert_map
from tests.unit.model.test_expert_use import DENSE, SPARSE
from tests.unit.report.conftest import MODELS


def give_model(root: Path, config: dict[str, object]) -> None:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    model = Decoder(ModelConfig.from_hf({**config, "vocab_size": len(tokenizer), "max_position_embeddings": 512}))
    model.init_weights(0)
    folder = root / "artifacts" / "general_rl" / "model"
    save_model(model, folder)
    save_tokenizer(tokenizer, folder)


def test_measured_once_for_a_model_and_its_samples(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_model(project, SPARSE)
    first = expert_map(project, "general_rl")
    assert first is not None
    assert (first["model"], first["samples"], list(first["tasks"])) == ("general_rl", 40, ["sum"])
    for layer in first["tasks"]["sum"]:
        assert sum(layer) == pytest.approx(1, abs=1e-3)
    measure = experts._measure
    monkeypatch.setattr(experts, "_measure", lambda *given: pytest.fail("measured again"))
    assert expert_map(project, "general_rl") == first
    samples = project / "artifacts" / "evaluation" / "samples.parquet"
    pl.read_parquet(samples).head(len(MODELS) * 6).write_parquet(samples)
    monkeypatch.setattr(experts, "_measure", measure)
    again = expert_map(project, "general_rl")
    assert again is not None
    assert again["samples"] == 3


def test_a_dense_model_has_no_map(project: Path) -> None:
    give_model(project, DENSE)
    assert expert_map(project, "general_rl") is None
    assert expert_map(project, "base") is None  # its folder is not there
