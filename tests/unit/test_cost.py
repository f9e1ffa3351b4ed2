"""Accounts over attempts, and the budget, with a real training loop."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from pipeline.cost import Account, Cost, costs, read_cost
from pipeline.errors import BudgetExceededError, InputError
from pipeline.gauges import Device
from pipeline.job import Meter, Work
from pipeline.model.checkpoint import disk_tensors
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.params import Distributed, Machine, Training
from pipeline.state import Attempt
from pipeline.training.batches import Example
from pipeline.training.loop import train

MODEL = {
    "model_type": "llama", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
OPTIONS = Training.model_validate(
    {"steps": 10, "tokens_per_step": 60, "learning_rate": 0.01, "checkpoint_every": 3, "micro_batch_tokens": 100}
)


class Clock:
    """Stands in for time: moves only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("pipeline.cost.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def machine(**budget: float) -> Machine:
    return Machine.model_validate(
        {"prices": {"currency": "EUR", "device_hour": {"cpu": 3.6, "default": 99.0}}, "budget": budget or None}
    )


def account(root: Path, options: Machine, stage: str = "base") -> Account:
    with Attempt(root, stage) as attempt:
        attempt.update(key="k")
    return Account(root, stage, "k", options)


@pytest.mark.parametrize(("kind", "devices"), [("cpu", 2), ("cuda", 16)])
def test_ranks_have_a_gpu_each_and_share_the_cpu_of_their_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, devices: int
) -> None:
    monkeypatch.setattr("pipeline.cost.device", lambda: Device("some", kind, 1))
    cost = Account(tmp_path, "base", "k", machine(), Distributed(ranks=8, nodes=2, zero=2)).cost()
    assert cost.devices == devices
    assert cost.device_seconds == pytest.approx(devices * cost.seconds, abs=0.02)


def fit(meter: Meter, scratch: Path, dies_at: int | None = None, options: Training = OPTIONS) -> Decoder:
    """A training of 10 steps with checkpoints after 3, 6 and 9."""
    model = Decoder(ModelConfig.from_hf(MODEL))
    model.init_weights(0)
    examples = [Example((start + np.arange(6)) % 20, np.arange(6) > 0) for start in range(30)]

    def log(figures: object, step: int) -> None:
        if step == dies_at:
            raise KeyboardInterrupt

    train(model, examples, options, seed=0, scratch=scratch, log=log, title="t", meter=meter)
    return model


def test_prices_go_by_name_then_kind_then_default() -> None:
    prices = machine().prices
    assert (prices.of("some CPU", "cpu"), prices.of("some GPU", "cuda")) == (3.6, 99.0)
    with pytest.raises(ValueError, match="default"):
        Machine.model_validate({"prices": {"device_hour": {"cpu": 1.0}}})
    with pytest.raises(ValueError, match="at least one of"):
        Machine.model_validate({"budget": {}})


def test_seconds_and_money_add_up_over_attempts(tmp_path: Path, clock: Clock) -> None:
    first = account(tmp_path, machine())
    clock.now += 100
    assert first.close().money == pytest.approx(0.1)  # 3.6 an hour
    second = account(tmp_path, machine())
    clock.now += 50
    second.close()
    cost = read_cost(tmp_path, "base")
    assert cost is not None
    assert (cost.attempts, cost.seconds, cost.device_seconds) == (2, 150.0, 150.0)
    assert (cost.money, cost.currency) == (pytest.approx(0.15), "EUR")


def test_a_killed_and_resumed_run_counts_its_tokens_once(tmp_path: Path) -> None:
    undisturbed = account(tmp_path, machine(), "whole")
    fit(undisturbed, tmp_path / "whole")
    whole = undisturbed.close().work
    assert whole.trained_tokens > 0
    assert whole.flops > 0

    killed = account(tmp_path, machine())
    with pytest.raises(KeyboardInterrupt):
        fit(killed, tmp_path / "part", dies_at=8)  # nothing is closed: as after SIGKILL
    at_checkpoint = read_cost(tmp_path, "base")
    assert at_checkpoint is not None
    assert 0 < at_checkpoint.work.trained_tokens < whole.trained_tokens
    resumed = account(tmp_path, machine())
    fit(resumed, tmp_path / "part")
    cost = resumed.close()
    assert cost.work == whole
    assert cost.seconds >= at_checkpoint.seconds
    assert cost.attempts == 2


def test_loops_of_one_stage_are_kept_apart(tmp_path: Path) -> None:
    undisturbed = account(tmp_path, machine(), "whole")
    fit(undisturbed.part("base"), tmp_path / "whole" / "base")
    fit(undisturbed, tmp_path / "whole" / "train")
    whole = undisturbed.close().work

    killed = account(tmp_path, machine())
    fit(killed.part("base"), tmp_path / "base")
    with pytest.raises(KeyboardInterrupt):
        fit(killed, tmp_path / "train", dies_at=8)
    resumed = account(tmp_path, machine())
    fit(resumed.part("base"), tmp_path / "base")  # goes on from its last checkpoint
    fit(resumed, tmp_path / "train")
    assert resumed.close().work == whole


def test_two_loops_of_one_part_are_our_mistake(tmp_path: Path) -> None:
    both = account(tmp_path, machine())
    fit(both.part("model"), tmp_path / "model")
    with pytest.raises(AssertionError, match="each loop has a part of its own"):
        fit(both.part("model"), tmp_path / "witness")


def test_a_stopped_run_counts_its_tokens_once_and_its_time_twice(tmp_path: Path, clock: Clock) -> None:
    stopped = account(tmp_path, machine())
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, tmp_path / "part", dies_at=8)
    clock.now += 7
    tail = stopped.close()
    resumed = account(tmp_path, machine())
    fit(resumed, tmp_path / "part")
    clock.now += 5
    cost = resumed.close()
    assert cost.seconds == 12
    assert tail.work.trained_tokens + sum([60] * 2) == pytest.approx(cost.work.trained_tokens, abs=12)


def test_work_without_checkpoints_starts_anew(tmp_path: Path) -> None:
    for _ in range(2):
        meter = account(tmp_path, machine())
        meter.count(Work(generated_tokens=5, flops=7))
        assert meter.close().work == Work(generated_tokens=5, flops=7)


def test_a_budget_stops_a_training_at_a_checkpoint_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    scratch = tmp_path / "runs" / "base" / "k"
    whole = fit(account(tmp_path, machine(), "whole"), tmp_path / "whole")
    for stage in ("whole",):  # is not to count as spent
        (tmp_path / "runs" / stage / "state.json").unlink()
    used = sum(60 for _ in range(6))
    with pytest.raises(BudgetExceededError, match=r"machine.budget.tokens = 450: spent 3\d\d, of which base") as stop:
        fit(account(tmp_path, machine(tokens=450)), scratch)
    assert "step 6 of 10 is kept" in str(stop.value)
    spent = read_cost(tmp_path, "base")
    assert spent is not None
    assert spent.work.trained_tokens == pytest.approx(used, abs=40)  # within the budget, one interval before its end
    again = account(tmp_path, machine(tokens=100_000))
    steps: list[int] = []
    again.resume, resume = (lambda step, ahead: (steps.append(step), resume(step, ahead))[1]), again.resume  # type: ignore[method-assign]
    model = fit(again, scratch)
    assert steps == [6]
    for name, tensor in disk_tensors(whole).items():
        assert tensor.equal(disk_tensors(model)[name]), name


def test_a_budget_that_does_not_reach_to_the_first_checkpoint_stops_before_it(tmp_path: Path) -> None:
    far = OPTIONS.model_copy(update={"checkpoint_every": 9})
    meter = account(tmp_path, machine(tokens=400))
    with pytest.raises(BudgetExceededError, match=r"Stopped after 3 steps \(nothing is kept"):
        fit(meter, tmp_path / "part", options=far)
    assert meter.close().work.trained_tokens < 400


def test_other_stages_count_and_a_stage_does_not_start_on_nothing(tmp_path: Path, clock: Clock) -> None:
    options = machine(money=0.05, hours=10)
    other = account(tmp_path, options, "curation")
    clock.now += 40
    other.close()
    account(tmp_path, options).require_budget()
    later = account(tmp_path, options, "evaluation")
    clock.now += 20
    later.close()
    assert set(costs(tmp_path)) == {"curation", "evaluation"}
    with pytest.raises(BudgetExceededError, match=r"money = 0.05: .* spent 0.06, so base was not started"):
        account(tmp_path, options).require_budget()


def test_the_last_checkpoint_needs_no_budget_for_a_next(tmp_path: Path, clock: Clock) -> None:
    for last, stops in ((10, True), (5, False)):
        meter = account(tmp_path / str(last), machine(hours=0.5))
        meter.resume(0, 5)
        clock.now += 1000  # of 1800 s: as much again would be too much
        if stops:
            with pytest.raises(BudgetExceededError, match=r"machine\.budget\.hours"):
                meter.keep(5, last)
        else:
            meter.keep(5, last)


def test_energy_of_a_part_of_the_attempts_is_none(tmp_path: Path) -> None:
    meter = account(tmp_path, machine())
    cost = meter.close()
    assert cost.joules is None or cost.joules >= 0
    path = tmp_path / "runs" / "base" / "k" / "cost.json"
    path.write_text(json.dumps({**asdict(Cost()), "energy": {}, "attempts": 1}))
    again = account(tmp_path, machine())
    again._energy._joules = {"cpu": 5.0}
    assert again.cost().joules is None
    assert "joules" not in again.cost().figures()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"kept": {"": 3}}', '{"kept": {}, "work": {}, "weight": 1}'])
def test_a_file_that_is_no_account_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "runs" / "base" / "key" / "cost.json"
    with Attempt(tmp_path, "base") as attempt:
        attempt.update(key="key")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(InputError, match=r"runs/base/key/cost\.json: .*delete it to go on"):
        read_cost(tmp_path, "base")
