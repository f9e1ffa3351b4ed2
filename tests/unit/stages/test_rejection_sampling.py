"""The rejection_sampling stage: judged parts survive a kill, and a poor yield stops the run with its traces kept."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import chat
from pipeline.errors import GateFailedError
from pipeline.job import Job
from pipeline.model.checkpoint import save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer, save_tokenizer
from pipeline.params import Params
from pipeline.records import Problem, Trace, read_table, schema, write_table
from pipeline.stages import rejection_sampling
from tests.unit.stages.toys import toy_params

pytestmark = pytest.mark.slow  # Great Expectations takes seconds to import

MODEL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A project with ten sums, two requests and a model that knows nothing."""
    sums = [Problem(f"s{n}", "s", "sum", f"{n}+1=?", str(n + 1), "numeric", "", 1.0, "train") for n in range(10)]
    asks = [Problem(f"r{n}", "s", "request", f"Greet {n}.", "Hi.", "none", "en", None, "train") for n in range(2)]
    traces = [Trace(problem.id, "so it is", problem.gold, "s") for problem in (*sums, *asks)]
    folder = tmp_path / "artifacts" / "curation"
    write_table(pl.DataFrame([*sums, *asks], schema=schema(Problem)), folder / "problems.parquet")
    write_table(pl.DataFrame(traces, schema=schema(Trace)), folder / "traces.parquet")
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    model = Decoder(ModelConfig.from_hf({**MODEL, "vocab_size": len(tokenizer)}))
    model.init_weights(0)
    (tmp_path / "artifacts" / "reasoning_rl" / "model").mkdir(parents=True)
    save_model(model, tmp_path / "artifacts" / "reasoning_rl" / "model")
    save_tokenizer(tokenizer, tmp_path / "artifacts" / "reasoning_rl" / "model")
    return Job("rejection_sampling", tmp_path, "key", lambda figures, step: None, lambda name, step, rows: None)


def params(**options: Any) -> Params:
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4}
    return toy_params(rejection_sampling={"problems": 10, "samples": 2, "sampling": sampling} | options)


def say(monkeypatch: pytest.MonkeyPatch, right: int) -> list[str]:
    """From now on the model's first `right` completions of a part solve the problem. Returns the titles of parts."""
    titles: list[str] = []
    generate = rejection_sampling.generate

    def scripted(model: Any, tokenizer: Any, prompts: Any, *args: Any, title: str, **options: Any) -> Any:
        titles.append(title)
        written = generate(model, tokenizer, prompts, *args, title=title, **options)
        for place, (prompt, group) in enumerate(zip(prompts, written, strict=True)):
            number = int(prompt.removeprefix("<bos><|user|>").partition("+")[0])
            if place < right:
                text = f"<think>{number}+1</think><answer>{number + 1}</answer>"
                object.__setattr__(group[0], "text", text)
                object.__setattr__(group[0], "finish", "end")
        return written

    monkeypatch.setattr(rejection_sampling, "generate", scripted)
    return titles


def test_right_completions_and_general_traces_make_the_set(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, right=6)
    metrics = rejection_sampling.run(params(), job)
    selected = read_table(job.output("traces.parquet"), Trace)
    assert (metrics["yield"], metrics["traces"], metrics["general"], metrics["completions"]) == (0.6, 8, 2, 20)
    assert selected["origin"].to_list() == ["reasoning_rl"] * 6 + ["s"] * 2
    assert set(selected["problem_id"]) >= {"r0", "r1"}
    assert metrics["yield/sum/1"] == 0.6


def test_a_poor_yield_fails_the_gate_and_the_traces_stay(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, right=4)
    with pytest.raises(GateFailedError, match=r"set: .*yield.*0\.4; rule: yield is at least 0\.5"):
        rejection_sampling.run(params(), job)
    assert not job.output("traces.parquet").exists()
    assert (job.runs / "rejected" / "traces.parquet").exists()


def test_parts_that_are_there_are_not_asked_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection_sampling, "PART", 4)
    titles = say(monkeypatch, right=3)
    rejection_sampling.run(params(), job)
    first = job.output("traces.parquet").read_bytes()
    assert len(titles) == 3
    [part] = job.scratch.glob("candidates-00000004-*.parquet")
    part.unlink()
    rejection_sampling.run(params(), job)
    assert titles[3:] == [titles[1]]
    assert job.output("traces.parquet").read_bytes() == first


def test_a_part_that_is_not_what_was_written_is_asked_again(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rejection_sampling, "PART", 4)
    titles = say(monkeypatch, right=3)
    rejection_sampling.run(params(), job)
    first = job.output("traces.parquet").read_bytes()
    [part] = job.scratch.glob("candidates-00000004-*.parquet")
    broken = bytearray(part.read_bytes())
    broken[len(broken) // 2] ^= 1
    part.write_bytes(broken)
    rejection_sampling.run(params(), job)
    assert titles[3:] == [titles[1]]
    assert f"{part} does not have the digest" in caplog.text
    assert job.output("traces.parquet").read_bytes() == first
    rejection_sampling.run(params(), job)
    assert len(titles) == 4
