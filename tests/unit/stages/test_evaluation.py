"""The evaluation stage on scripted answers: what it writes, and what a planted worse model brings about."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline import chat
from pipeline.errors import GateFailedError, InputError, exit_code
from pipeline.evaluation import choice, sampling
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.models import find_models
from pipeline.evaluation.preference import Preference
from pipeline.evaluation.results import results
from pipeline.files import digest
from pipeline.generation.requests import Completion
from pipeline.job import Job
from pipeline.model.checkpoint import save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer, save_tokenizer
from pipeline.params import Params
from pipeline.records import Problem, Sample, read_table, schema, write_table
from pipeline.stages import evaluation
from tests.unit.stages.toys import toy_params

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
SKILL = {"base": 2, "cold_start": 4, "reasoning_rl": 8}  # so many of the ten problems are answered rightly
FILES = {
    "samples.parquet",
    "summary.json",
    "figures.csv",
    "comparisons.csv",
    "models.csv",
    "pass_at_k.csv",
    "difficulty.csv",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three models, ten problems and two general prompts; who is asked answers by `SKILL`."""
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    decoder = Decoder(ModelConfig.from_hf({**LLAMA, "vocab_size": len(tokenizer)}))
    decoder.init_weights(0)
    for stage in SKILL:
        save_model(decoder, tmp_path / "artifacts" / stage / "model")
        save_tokenizer(tokenizer, tmp_path / "artifacts" / stage / "model")
    problems = [
        Problem(f"{n:04}", "s", "sum", f"{n}+1=?", f"{n + 1}", "numeric", "", 1.0, "evaluation") for n in range(10)
    ]
    problems += [
        Problem(f"g{n}", "s", "request", f"Thank {n}.", "", "none", "en", None, "evaluation") for n in range(2)
    ]
    write_table(
        pl.DataFrame(problems, schema=schema(Problem)), tmp_path / "artifacts" / "curation" / "problems.parquet"
    )
    deps = "".join(f"      - artifacts/{stage}/model\n" for stage in SKILL)
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  evaluation:\n    deps:\n{deps}")

    def generate(
        model: Any, tokenizer: Any, prompts: Sequence[str], options: Any, **rest: Any
    ) -> list[list[Completion]]:
        skill = SKILL[rest["title"].removeprefix("evaluation: ")]
        return [
            [_completion(prompt, place < skill, place, number) for number in range(rest["samples"])]
            for place, prompt in enumerate(prompts)
        ]

    monkeypatch.setattr(sampling, "generate", generate)
    return tmp_path


def _completion(prompt: str, right: bool, request: int, number: int) -> Completion:
    answer = f"{request + 1}" if right else "900"
    text = "it is late" if "Thank" in prompt else chat.render_completion("one more", answer, eos="")
    return Completion(request, number, np.zeros(5, np.int64), np.zeros(5, np.float32), text, "end")


@dataclass
class Run:
    """The stage as it is called."""

    root: Path

    def __call__(self, **options: Any) -> dict[str, float]:
        self.logged: dict[str, float] = {}
        job = Job("evaluation", self.root, "key", lambda figures, step: self.logged.update(figures), lambda *_: None)
        return evaluation.run(_params(**options), job)


def _params(**options: Any) -> Params:
    return toy_params(evaluation={"problems": 10, "samples": 2, "general": 2, **options})


def test_every_model_has_its_figures_and_the_newest_heads_them(project: Path) -> None:
    run = Run(project)
    metrics = run()
    assert next(iter(metrics)) == "reasoning_rl.pass_at_1"
    assert [metrics[f"{stage}.pass_at_1"] for stage in SKILL] == [0.2, 0.4, 0.8]
    assert metrics["reasoning_rl.over_cold_start"] == pytest.approx(0.4)
    assert metrics["reasoning_rl.over_cold_start_p"] == pytest.approx(2 / 2**4)
    assert metrics["reasoning_rl.sum.pass_at_1"] == 0.8
    assert metrics["problems"] == 10
    assert metrics["base.parameters"] == metrics["base.activated_parameters"] > 0
    artifacts = project / "artifacts" / "evaluation"
    assert {path.name for path in artifacts.iterdir()} == FILES
    summary = json.loads((artifacts / "summary.json").read_text())
    assert summary["cold_start"]["pass_at_1"] == 0.4
    assert pl.read_csv(artifacts / "models.csv")["model"].to_list() == ["reasoning_rl", "cold_start", "base"]
    assert run.logged["base/tokens_per_s"] > 0


def test_a_part_of_the_recipe_with_one_model_has_nothing_to_compare(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: {evaluation: {deps: [artifacts/base/model]}}\n")
    assert next(iter(Run(project)())) == "base.pass_at_1"
    comparisons = pl.read_csv(project / "artifacts" / "evaluation" / "comparisons.csv")
    assert comparisons.is_empty()
    assert comparisons.columns[:3] == ["model", "reference", "difference"]


def test_samples_can_be_read(project: Path) -> None:
    Run(project)()
    samples = read_table(project / "artifacts" / "evaluation" / "samples.parquet", Sample)
    assert len(samples) == 3 * 12 * 2
    row = samples.row(0, named=True)
    assert (row["prompt"], row["answer"], row["verdict"], row["language"]) == ("0+1=?", "1", "right", 1.0)
    general = samples.filter(task="request")
    assert set(general["verdict"]) == {"unchecked"}
    assert set(general["completion"]) == {"it is late"}


def test_outputs_hold_no_times(project: Path) -> None:
    digests = []
    for _ in range(2):
        metrics = Run(project)()
        digests.append((digest(project / "artifacts" / "evaluation"), metrics))
    assert digests[0] == digests[1]
    assert "tokens_per_s" in (project / "runs" / "evaluation" / "speed.json").read_text()


def test_a_planted_worse_model_stops_the_run_and_all_gates_speak(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SKILL, "cold_start", 9)
    monkeypatch.setitem(SKILL, "base", 10)
    with pytest.raises(GateFailedError) as error:
        Run(project)(gates={"stages": {"cold_start": {"fall": 0.0}, "reasoning_rl": {"fall": 0.0}}})
    assert exit_code(error.value) == 3
    rejected = project / "runs" / "evaluation" / "rejected"
    head, *lines = str(error.value).splitlines()
    assert head == f"evaluation: 2 of 2 gates failed; samples and figures: {rejected}"
    assert "reasoning_rl has pass@1 80.0%, cold_start 90.0% on the same 10 problems: −10.0 points" in lines[0]
    assert "cold_start has pass@1 90.0%, base 100.0%" in lines[1]
    assert {path.name for path in rejected.iterdir()} == FILES | {"metrics.json"}
    assert not (project / "artifacts" / "evaluation").exists()
    Run(project)(gates={"stages": {}})
    assert not rejected.exists()
    assert (project / "artifacts" / "evaluation").exists()


def test_the_champion_is_asked_for_before_any_work(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    champion: Mapping[str, Any] = {"samples": "champion.parquet", "digest": "0" * 64, "model": "base", "least": 5}
    with pytest.raises(InputError, match=r"champion\.parquet: no such file"):
        Run(project)(champion=champion)
    Run(project)()
    samples = project / "artifacts" / "evaluation" / "samples.parquet"
    samples.rename(project / "champion.parquet")
    pinned = {**champion, "digest": digest(project / "champion.parquet")}
    Run(project)(champion=pinned)
    monkeypatch.setitem(SKILL, "reasoning_rl", 1)
    with pytest.raises(GateFailedError, match=r"reasoning_rl has pass@1 10\.0%, the champion's base 20\.0%"):
        Run(project)(champion=pinned, gates={"stages": {}})


def test_no_checkable_problem_is_the_datas_fault(project: Path) -> None:
    path = project / "artifacts" / "curation" / "problems.parquet"
    write_table(read_table(path, Problem).filter(task="request"), path)
    with pytest.raises(InputError, match="no checkable problem in its evaluation split"):
        Run(project)()


def test_with_a_preference_model_general_answers_are_compared(project: Path) -> None:
    class LikesTheBase:
        def scores(self, tokenizer: Any, texts: Sequence[tuple[str, str]]) -> list[float]:
            self.calls = getattr(self, "calls", 0) + 1
            return [float(-self.calls)] * len(texts)  # the base is asked last

    options = _params().evaluation
    models = find_models(project, [f"artifacts/{stage}/model" for stage in SKILL], ())
    problems = choice.choose(read_table(project / "artifacts" / "curation" / "problems.parquet", Problem), 10, 2)
    preference = Preference(LikesTheBase(), character_tokenizer(chat.CHAT_TEMPLATE))
    metrics = results(evaluate(models, problems, options, 0, preference), 0).metrics
    assert [metrics[f"{stage}.preference"] for stage in SKILL] == [-3, -2, -1]
    assert metrics["reasoning_rl.wins_over_base"] == 1
    assert "base.wins_over_cold_start" not in metrics
