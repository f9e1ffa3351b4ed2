"""The step and the loop around it, with a plain engine and a reward that can be learnt."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from pipeline.curves import Curves
from pipeline.errors import RunStoppedError
from pipeline.generation.requests import Completion
from pipeline.model.decoder import Decoder
from pipeline.params import GRPO
from pipeline.params import Health as HealthOptions
from pipeline.rl.conditions import Action
from pipeline.rl.grpo import Step, Summary, train
from pipeline.rl.health import Diagnosis, Health
from pipeline.rl.learner import Learner
from pipeline.rl.rollout import Question, Questions

from .toys import counted, decoder, grpo, judge, plain_engine, question

FIGURES = {
    "reward", "reward_std", "reward/accuracy", "right", "unparseable", "timed_out", "no_spread", "resampled", "length",
    "truncated", "entropy", "kl", "ratio_max", "clipped_low", "clipped_high", "gap_mean", "gap_max",
    "importance_capped", "gradient_norm", "loss", "imbalance", "learning_rate", "prompts", "samples", "trained_tokens",
    "rollout_s", "score_s", "update_s", "generated_tokens_per_s", "trained_tokens_per_s",
}  # fmt: skip
Reward = Callable[[Question, Completion], float]


def questions(count: int = 10) -> Questions:
    return Questions([question(number) for number in range(count)], seed=0)


def health() -> Health:
    return Health(HealthOptions())


def step(options: GRPO, reward: Reward = counted, model: Decoder | None = None, noise: float = 0.0) -> Step:
    model = model or decoder()
    return Step(
        questions(), plain_engine(model, noise=noise), judge(reward), Learner(model, options, 0), health(), options
    )


class Run:
    """A run of the loop, and what it logged."""

    def __init__(self, folder: Path, options: GRPO, *, reward: Reward = counted, watch: Health | None = None) -> None:
        self.folder, self.options, self.reward, self.watch = folder, options, reward, watch or health()
        self.model = decoder()
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.tables: list[tuple[str, int, Sequence[Mapping[str, str | float]]]] = []
        self.kill_at: int | None = None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        Curves(self.folder).note(figures, step)
        if step == self.kill_at:
            raise KeyboardInterrupt
        self.logged.append((step, figures))

    def go(self) -> Summary:
        return train(
            self.model,
            questions(),
            self.options,
            generate=plain_engine(self.model),
            judge=judge(self.reward),
            health=self.watch,
            seed=0,
            scratch=self.folder,
            log=self.log,
            table=lambda name, step, rows: self.tables.append((name, step, rows)),
            title="test",
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self.model.state_dict())


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_step_logs_every_figure():
    outcome = step(grpo()).run(0, 0)
    assert set(outcome.figures) == FIGURES
    assert all(isinstance(value, int | float) for value in outcome.figures.values())
    assert outcome.figures["prompts"] == 4
    assert outcome.figures["samples"] == 12
    assert outcome.place == 4
    assert outcome.diagnosis is None


def test_an_engine_that_tells_the_truth_shows_no_gap_and_one_that_errs_does():
    assert step(grpo()).run(0, 0).figures["gap_max"] < 1e-4
    figures = step(grpo({"importance_cap": 1.0}), noise=0.5).run(0, 0).figures
    assert 0.2 < figures["gap_mean"] < 0.8
    assert 0.2 < figures["importance_capped"] < 0.8  # half of the errors are upwards


RECIPES: dict[str, tuple[dict[str, object], dict[str, object]]] = {  # of docs/reasoning-rl.md: loss, the rest
    "Dr. GRPO": ({"normalisation": "constant"}, {"scale_by_std": False}),
    "DAPO": ({"normalisation": "token", "clip_high": 0.28, "kl_coefficient": 0.0}, {"resample_rounds": 3}),
    "GSPO": ({"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}, {"minibatches": 3}),
    "R1": ({"clip_low": 10.0, "clip_high": 10.0}, {"minibatches": 16, "reference_every": 400}),
    "off policy": ({"old": "engine", "kl": "k2"}, {"minibatches": 2}),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_moves_the_policy(recipe: str):
    loss, rest = RECIPES[recipe]
    model = decoder()
    before = model.embed_tokens.weight.clone()
    figures = step(grpo(loss, **rest), model=model).run(0, 0).figures
    assert figures["gradient_norm"] > 0
    assert not torch.equal(before, model.embed_tokens.weight)
    if recipe == "GSPO":
        assert figures["clipped_low"] + figures["clipped_high"] > 0  # bounds as tight as these are felt at once


def only_even(chosen: Question, completion: Completion) -> float:
    """A reward that differs within a group for even questions alone."""
    return 1.0 if int(chosen.problem.id) % 2 else counted(chosen, completion) + len(completion.tokens) / 100


def test_groups_without_spread_are_counted_and_made_up_for_within_their_bound():
    order = [int(chosen.problem.id) % 2 == 0 for chosen in questions().take(0, 20)]
    plain = step(grpo(group=8), only_even).run(0, 0)
    assert plain.figures["no_spread"] == 1 - sum(order[:4]) / 4
    assert plain.figures["resampled"] == 0
    assert plain.place == 4
    once = step(grpo(group=8, resample_rounds=1), only_even).run(0, 0)
    odd = order[:4].count(False)
    assert once.figures["resampled"] == odd
    assert once.figures["no_spread"] == plain.figures["no_spread"]
    often = step(grpo(group=8, resample_rounds=50), only_even).run(0, 0)
    assert sum(group.has_spread for group in often.groups) == 4
    assert often.place == len(often.groups) == often.figures["prompts"]


def test_a_step_without_any_spread_trains_nothing():
    model = decoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = step(grpo(resample_rounds=2), lambda *_: 0.5, model).run(0, 0)
    assert outcome.figures["no_spread"] == 1
    assert outcome.figures["prompts"] == 12
    assert outcome.figures["trained_tokens"] == 0
    assert "loss" not in outcome.figures
    assert same(before, dict(model.state_dict()))


@pytest.mark.slow
def test_it_learns_what_is_rewarded(tmp_path: Path):
    options = grpo({"kl_coefficient": 0.0}, steps=40, prompts=8, group=6, learning_rate=0.02, checkpoint_every=100)
    run = Run(tmp_path, options, watch=Health(HealthOptions(max_truncated=1.0)))  # the longest text is the best one
    summary = run.go()
    assert run.logged[0][1]["reward"] < 0.2
    assert run.logged[-1][1]["reward"] > 0.8
    assert summary.reward > 0.7
    assert summary.samples == 40 * 48
    assert summary.trained_tokens == sum(figures["trained_tokens"] for _, figures in run.logged)


@pytest.mark.parametrize("changes", [{}, {"minibatches": 3, "resample_rounds": 2, "reference_every": 3}])
@pytest.mark.parametrize("kill", [1, 2, 5])
def test_a_killed_run_ends_in_the_same_bits(kill: int, changes: dict[str, int], tmp_path: Path):
    whole, killed = Run(tmp_path / "whole", grpo(**changes)), Run(tmp_path / "killed", grpo(**changes))
    expected = whole.go()
    killed.kill_at = kill
    with pytest.raises(KeyboardInterrupt):
        killed.go()
    resumed = Run(tmp_path / "killed", grpo(**changes))
    assert resumed.go() == expected
    assert resumed.logged[0][0] == kill // 2 * 2  # from the last checkpoint on
    assert same(whole.weights(), resumed.weights())
    for name in ("whole", "killed"):
        Curves(tmp_path / name).write(tmp_path / f"{name}.csv")
    curves = (tmp_path / "whole.csv").read_text()
    assert curves == (tmp_path / "killed.csv").read_text()
    assert "rollout_s" not in curves


def test_the_same_seed_gives_the_same_bits(tmp_path: Path):
    runs = [Run(tmp_path / name, grpo()) for name in ("a", "b")]
    assert runs[0].go() == runs[1].go()
    assert same(runs[0].weights(), runs[1].weights())


def test_tables_of_samples_are_readable(tmp_path: Path):
    run = Run(tmp_path, grpo(table_every=3))
    run.go()
    assert [(name, step) for name, step, _ in run.tables] == [("samples", 0), ("samples", 3)]
    rows = run.tables[0][2]
    assert len(rows) == 12
    first = questions().take(0, 1)[0]
    assert rows[0]["prompt"] == first.problem.prompt
    assert set(rows[0]) == {
        "prompt", "gold", "completion", "verdict", "reward", "accuracy", "tokens", "finish", "reason",
    }  # fmt: skip


class Planted(Health):
    """Finds something at the steps it is told to: before the update, as a spike is found."""

    def __init__(self, plan: Mapping[int, Action]) -> None:
        super().__init__(HealthOptions())
        self.plan = plan
        self.backs: list[int] = []

    def examine(self, step: int, figures: Mapping[str, float]) -> Diagnosis | None:
        if "loss" in figures and step in self.plan:
            return Diagnosis(step, "planted", (), self.plan[step], "", "nothing")
        return None

    def roll_back(self, step: int) -> None:
        self.backs.append(step)


def test_a_skipped_step_leaves_the_weights_and_goes_on_with_the_next_data(tmp_path: Path):
    skipping = Run(tmp_path, grpo(), watch=Planted({0: Action.SKIP, 1: Action.SKIP}))
    skipping.options = grpo(steps=2)
    summary = skipping.go()
    assert same(decoder().state_dict(), skipping.weights())
    assert (summary.steps, summary.place) == (2, 8)


def test_going_back_restores_the_last_checkpoint_and_meets_other_questions(tmp_path: Path):
    watch = Planted({3: Action.ROLL_BACK})
    run = Run(tmp_path / "run", grpo(steps=4), watch=watch)
    summary = run.go()
    until = Run(tmp_path / "until", grpo(steps=2))
    until.go()
    assert same(until.weights(), run.weights())  # the checkpoint was written after two steps
    assert (summary.steps, summary.place) == (4, 16)
    assert watch.backs == [1]


def test_before_the_first_checkpoint_there_is_the_start_to_go_back_to(tmp_path: Path):
    run = Run(tmp_path, grpo(steps=2, checkpoint_every=100), watch=Planted({1: Action.ROLL_BACK}))
    run.go()
    assert same(decoder().state_dict(), run.weights())
    assert run.watch.backs == [-1]  # type: ignore[attr-defined]


def test_a_run_that_is_given_up_stops_with_the_reason_and_has_logged_the_step(tmp_path: Path):
    run = Run(tmp_path, grpo(), watch=Planted({2: Action.STOP}))
    with pytest.raises(RunStoppedError, match="step 2: planted"):
        run.go()
    assert [step for step, _ in run.logged] == [0, 1, 2]


def test_a_dead_reward_is_found_by_health_itself(tmp_path: Path):
    options = grpo(steps=10, prompts=1, group=2)
    run = Run(tmp_path, options, reward=lambda *_: 0.0, watch=Health(HealthOptions(dead_steps=4)))
    with pytest.raises(RunStoppedError, match="step 3: dead reward"):
        run.go()
