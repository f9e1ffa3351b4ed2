"""Arms on the same problems, with models that answer as a table says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from pipeline import chat
from pipeline.evaluation import sampling
from pipeline.files import write_json
from pipeline.generation.requests import Completion
from pipeline.model.checkpoint import save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer, save_tokenizer
from pipeline.records import Problem, schema, write_table
from pipeline.studies.compare import results
from pipeline.studies.definition import Study, workspace
from pipeline.studies.spent import WAY
from pipeline.studies.tables import markdown, terminal
from tests.project import PARAMS

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
SKILL = {("plain", 1): 2, ("plain", 2): 4, ("better", 1): 8, ("better", 2): 5}  # problems that are answered rightly
STUDY = Study.model_validate(
    {
        "question": "Which?",
        "control": "plain",
        "seeds": [1, 2],
        "arms": {"plain": {"model": "base"}, "better": {"model": "base", "params": {"base.x": 1}}},
    }
)


class Project:
    """Two arms with two seeds, ten problems each; who is asked answers by `SKILL`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        params = PARAMS.replace("{problems: 1, samples: 1}", "{problems: 10, samples: 2}")
        (root / "params.yaml").write_text(params)
        tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
        decoder = Decoder(ModelConfig.from_hf({**LLAMA, "vocab_size": len(tokenizer)}))
        for arm, seed in SKILL:
            folder = workspace(root, "which", arm, seed)
            decoder.init_weights(seed)
            save_model(decoder, folder / "artifacts" / "base" / "model")
            save_tokenizer(tokenizer, folder / "artifacts" / "base" / "model")
            problems = [
                Problem(f"{n:04}", "s", "sum", f"{n}+{seed}=?", f"{n + seed}", "numeric", "", 1.0, "evaluation")
                for n in range(10)
            ]
            write_table(pl.DataFrame(problems, schema=schema(Problem)), folder / "artifacts/curation/problems.parquet")
            (folder / "params.yaml").write_text(params.replace("seed: 1", f"seed: {seed}"))
            (folder / "dvc.yaml").write_text("stages: {base: {params: [seed, base]}}")
            write_json(folder / WAY, ["base"])

    def generate(self, _: Any, tokenizer: Any, prompts: Sequence[str], __: Any, **rest: Any) -> list[list[Completion]]:
        arm, seed = rest["title"].removeprefix("evaluation: "), rest["seed"]
        self.asked.append(f"{arm} {seed}")
        answers = [f"{place + seed if place < SKILL[arm, seed] else -1}" for place in range(len(prompts))]
        return [
            [_completion(answer, place, number) for number in range(rest["samples"])]
            for place, answer in enumerate(answers)
        ]

    def results(self) -> dict[str, Any]:
        return results(self.root, "which", STUDY)


def _completion(answer: str, request: int, number: int) -> Completion:
    text = chat.render_completion("so", answer, eos="")
    return Completion(request, number, np.zeros(5, np.int64), np.zeros(5, np.float32), text, "end")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path)
    monkeypatch.setattr(sampling, "generate", made.generate)
    return made


def test_arms_are_paired_within_their_seed_and_pooled_over_the_seeds(project: Project) -> None:
    arms = project.results()["arms"]
    plain, better = arms["plain"], arms["better"]
    assert [plain["seeds"][seed]["pass_at_1"] for seed in "12"] == [0.2, 0.4]
    assert [better["seeds"][seed]["over_control"] for seed in "12"] == pytest.approx([0.6, 0.1])
    pooled = better["pooled"]
    assert pooled["problems"] == 20  # the seeds' problems have equal ids and are not the same
    assert pooled["pass_at_1"] == pytest.approx(0.65)
    assert pooled["over_control"] == pytest.approx(0.35)
    assert pooled["over_control_low"] < 0.35 < pooled["over_control_high"]
    assert (pooled["better"], pooled["worse"]) == (7, 0)
    assert pooled["p_value"] == pytest.approx(2 / 2**7)
    assert "over_control" not in plain["pooled"]
    assert plain["total"] == plain["activated"] > 0
    assert plain["pooled"]["tokens"] == 5


def test_what_was_asked_before_is_not_asked_again(project: Project) -> None:
    first = project.results()
    assert project.asked == ["plain 1", "better 1", "plain 2", "better 2"]
    assert project.results() == first
    assert len(project.asked) == 4
    model = workspace(project.root, "which", "better", 2) / "artifacts" / "base" / "model"
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    project.results()
    assert project.asked[4:] == ["better 2"]


def test_tables_say_what_is_not_known(project: Project) -> None:
    found = project.results()
    page = markdown(found)
    assert "| better | 65.0 [" in page
    assert "+35.0 [" in page
    assert "80.0 %, 50.0 %" in page
    assert "not known / not known" in page  # nobody has an account of these models
    console = Console(width=200, record=True)
    console.print(terminal(found))
    assert "+35.0" in console.export_text()
