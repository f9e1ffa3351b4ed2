"""preference and general_rl on a project of toys: what they write, their gate, and that they go on where they were."""

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import chat
from pipeline.errors import GateFailedError, InputError, RunStoppedError
from pipeline.files import digest
from pipeline.job import Job, read_yaml
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.reward import load_reward
from pipeline.model.tokenizer import character_tokenizer, load_tokenizer, save_tokenizer
from pipeline.params import Params
from pipeline.records import PreferencePair, Problem, schema, write_table
from pipeline.stages import general_rl, preference

SMOKE = Path(__file__).parents[3] / "infra" / "profiles" / "smoke.yaml"


def params(**changes: Any) -> Params:
    """The smoke profile with these values, named as `section__key`, in place of its own."""
    document = read_yaml(SMOKE)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        document[section][name] = value
    return Params.model_validate(document)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project in which all that the two stages read is there; its model is one that nobody has trained."""
    problems = [
        Problem(f"c{number:02}", "made", "sum", f"{number}+1=?", f"{number + 1}", "numeric", "", 1, "train")
        for number in range(12)
    ] + [
        Problem(f"g{number:02}", "made", "request", f"Ask {number}.", "Please.", "none", "en", 1, "train")
        for number in range(12)
    ]
    pairs = [
        PreferencePair(f"ask {number}", "Yes" + "!" * (1 + number % 3), "Not" + "." * (1 + number // 3 % 3), "made")
        for number in range(60)
    ]
    write_table(pl.DataFrame(problems, schema=schema(Problem)), tmp_path / "artifacts/curation/problems.parquet")
    write_table(pl.DataFrame(pairs, schema=schema(PreferencePair)), tmp_path / "artifacts/curation/pairs.parquet")
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    model = Decoder(ModelConfig.from_hf({**params().base.model_dump()["model"], "vocab_size": len(tokenizer)}))
    model.init_weights(0)
    folder = tmp_path / "artifacts" / "general_sft" / "model"
    save_model(model, folder)
    save_tokenizer(tokenizer, folder)
    return tmp_path


class Run:
    """A stage's run, and what it logged."""

    def __init__(self, root: Path, stage: str, key: str = "key", kill_at: int | None = None) -> None:
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.kill_at = kill_at
        self.job = Job(stage, root, key, self.log, lambda name, step, rows: None)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if len(self.logged) == self.kill_at:
            raise KeyboardInterrupt
        self.logged.append((step, figures))

    def go(self, given: Params) -> dict[str, Any]:
        return {"preference": preference, "general_rl": general_rl}[self.job.stage].run(given, self.job)


LEARNS = {"steps": 40, "pairs_per_step": 16, "learning_rate": 1e-2, "checkpoint_every": 2}


def test_the_preference_model_and_its_witness_are_whole_and_measured(root: Path) -> None:
    run = Run(root, "preference")
    metrics = run.go(params(preference__min_accuracy=0.6, preference__train=LEARNS))
    assert metrics["accuracy_low"] > 0.6
    assert metrics["witness_accuracy"] > 0.6
    assert 0 <= metrics["accuracy_chosen_shorter"] <= 1
    assert -1 <= metrics["length_correlation"] <= 1
    assert metrics["agreement"] > 0.6
    assert json.dumps(metrics, allow_nan=False)
    models = [load_reward(run.job.output(name)) for name in ("model", "witness")]
    tokenizer = load_tokenizer(run.job.output("model"))
    kind, curt = (("ask 99", f"<think></think><answer>{text}</answer>") for text in ("Yes!!", "Not.."))
    for model in models:
        better, worse = model.scores(tokenizer, [kind, curt])
        assert better > worse
    assert models[0].scores(tokenizer, [kind]) != models[1].scores(tokenizer, [kind])
    assert [step for step, figures in run.logged if "loss" in figures] == list(range(1, 41))
    assert [step for step, figures in run.logged if "witness/loss" in figures] == list(range(1, 41))


def test_a_preference_model_that_tells_nothing_apart_does_not_pass(root: Path) -> None:
    run = Run(root, "preference")
    with pytest.raises(GateFailedError, match=r"accuracy .* held-out pairs: .* min_accuracy 1\. To try: more pairs"):
        run.go(params(preference__min_accuracy=1.0))
    assert not run.job.output("model").exists()


@pytest.mark.parametrize("kill", [1, 3, 6])
def test_a_killed_training_of_both_ends_in_the_same_bits(kill: int, root: Path) -> None:
    given = params(preference__train=LEARNS | {"steps": 4})
    whole = Run(root, "preference", "whole")
    expected, before = whole.go(given), {name: digest(whole.job.output(name)) for name in ("model", "witness")}
    with pytest.raises(KeyboardInterrupt):
        Run(root, "preference", "killed", kill_at=kill).go(given)
    assert Run(root, "preference", "killed").go(given) == expected
    assert {name: digest(whole.job.output(name)) for name in before} == before


@pytest.fixture
def preferred(root: Path) -> Path:
    Run(root, "preference").go(params())
    return root


def test_general_rl_writes_a_model_and_is_watched(preferred: Path) -> None:
    run = Run(preferred, "general_rl")
    metrics = run.go(params())
    model = load_model(run.job.output("model"))
    assert (metrics["steps"], metrics["parameters"]) == (2, model.size().total)
    assert "reward/preference" not in run.logged[0][1]
    assert 0 <= run.logged[1][1]["reward/preference"] <= 1
    assert run.logged[1][1]["monitor/since"] == 1


@pytest.mark.parametrize("kill", [1, 2])
def test_a_killed_general_rl_ends_in_the_same_bits(kill: int, preferred: Path) -> None:
    given = params(general_rl__train=params().general_rl.train.model_dump() | {"steps": 3})
    whole = Run(preferred, "general_rl", "whole")
    expected, before = whole.go(given), digest(whole.job.output("model"))
    with pytest.raises(KeyboardInterrupt):
        Run(preferred, "general_rl", "killed", kill_at=kill).go(given)
    assert Run(preferred, "general_rl", "killed").go(given) == expected
    assert digest(whole.job.output("model")) == before


@pytest.fixture
def judge_url() -> Iterator[str]:
    """A judge that takes the longer answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked = json.loads(content["messages"][-1]["content"])
            said = "A" if len(asked["A"]) > len(asked["B"]) else "B"
            body = json.dumps({"choices": [{"message": {"content": said}}], "usage": {"total_tokens": 50}}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_judge_is_one_more_reward(judge_url: str, preferred: Path) -> None:
    asked = {"url": judge_url, "model": "j", "against": "reference", "max_calls": 40, "max_tokens": 40_000}
    run = Run(preferred, "general_rl")
    run.go(params(general_rl__judge=asked))
    figures = run.logged[1][1]
    assert 0 <= figures["reward/judge"] <= 1
    assert figures["judge/calls"] >= 0
    with pytest.raises(InputError, match="key_variable: NO_SUCH_KEY: is not set"):
        Run(preferred, "general_rl", "other").go(params(general_rl__judge=asked | {"key_variable": "NO_SUCH_KEY"}))


def test_a_spent_budget_stops_the_run(judge_url: str, preferred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions of an untrained model have no form, and so need no judge: here each has one."""
    monkeypatch.setattr("pipeline.rl.judge._answer", lambda completion: completion.text)
    asked = {"url": judge_url, "model": "j", "max_calls": 1, "max_tokens": 40_000}
    with pytest.raises(RunStoppedError, match=r"general_rl\.judge\.max_calls: 1: the next question may exceed it"):
        Run(preferred, "general_rl").go(params(general_rl__judge=asked))
    assert (preferred / "runs" / "general_rl" / "key" / "step-1").is_dir()
    Run(preferred, "general_rl").go(params(general_rl__judge=asked | {"max_calls": 9}))
    lines = (preferred / "runs" / "general_rl" / "judge.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines)  # nothing was asked twice
