"""Bradley–Terry: its formula, its normalisation over the whole step, and that a killed run ends in the same bits."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.reward import RewardModel
from pipeline.params import PairTraining
from pipeline.preference.measures import Measured, agreement, measure
from pipeline.preference.training import PairObjective, bradley_terry, train_reward, train_step
from pipeline.training.engine import TorchEngine
from pipeline.training.loop import Summary

from .toys import options, pairs, reward_model

SCORES = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=8)


def run(folder: Path, model: RewardModel, settings: PairTraining, log=lambda figures, step: None) -> Summary:
    return train_reward(model, pairs(), settings, seed=0, scratch=folder, log=log, title="test")


@given(SCORES)
def test_the_loss_is_the_formula(scores: list[tuple[float, float]]) -> None:
    chosen, rejected = (torch.tensor(column, dtype=torch.float64) for column in zip(*scores, strict=True))
    expected = sum(math.log1p(math.exp(b - a)) for a, b in scores)
    assert bradley_terry(chosen, rejected).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_what_is_not_told_apart_costs_log_2() -> None:
    assert bradley_terry(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(3 * math.log(2))


@pytest.mark.parametrize("micro_batch_tokens", [1, 200, 16_384], ids=["one by one", "several", "at once"])
def test_a_step_is_the_mean_over_its_pairs_however_it_is_cut(micro_batch_tokens: int) -> None:
    settings = options(gradient_clip=1e9, micro_batch_tokens=micro_batch_tokens)
    model, chosen = reward_model(), pairs(7)
    differences = [model(*_alone(pair.chosen))[0] - model(*_alone(pair.rejected))[0] for pair in chosen]
    loss = torch.stack([(1 + (-difference).exp()).log() for difference in differences]).mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    other = copy.deepcopy(model)
    engine = TorchEngine(PairObjective(other), settings)
    figures = train_step(engine, other, chosen, settings, step=0)
    assert figures.loss == pytest.approx(loss.item(), abs=1e-6)
    moments = engine.state()["optimiser"]
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        ours = moments[f"reward.{name}:exp_avg"] / (1 - settings.beta1)
        torch.testing.assert_close(ours, gradient, atol=1e-6, rtol=1e-4, msg=name)


def _alone(text: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    return torch.from_numpy(text), torch.arange(len(text)), [len(text)]


@pytest.mark.parametrize("kill", [1, 3, 4, 7])
def test_a_killed_run_ends_in_the_same_bits(kill: int, tmp_path: Path) -> None:
    def log(figures: Mapping[str, float], step: int) -> None:
        if step == kill:
            raise KeyboardInterrupt

    whole, killed, resumed = reward_model(), reward_model(), reward_model()
    expected = run(tmp_path / "whole", whole, options())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed, options(), log)
    trained: list[int] = []
    assert run(tmp_path / "killed", resumed, options(), lambda _, step: trained.append(step)) == expected
    assert trained[0] == 3 * ((kill - 1) // 3) + 1  # from the last checkpoint on
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert resumed.scale == whole.scale


def test_it_learns_what_is_preferred_and_not_length(tmp_path: Path) -> None:
    model = reward_model()
    run(tmp_path, model, options(steps=60, pairs_per_step=16, checkpoint_every=100))
    fresh = measure(model, list(pairs(120)[40:]))
    assert fresh.right.mean() > 0.9
    assert fresh.right[fresh.shorter].mean() > 0.9
    assert abs(fresh.length_correlation()) < 0.6
    raw = model.raw_scores([text for pair in pairs() for text in (pair.chosen, pair.rejected)]).double()
    assert (model.scale.mean, model.scale.std) == (raw.mean().item(), raw.std().item())


def measured(chosen: list[float], rejected: list[float], lengths: list[tuple[int, int]]) -> Measured:
    return Measured(np.array(chosen), np.array(rejected), np.array(lengths))


def test_accuracy_counts_a_tie_half_and_looks_at_the_shorter_ones_apart() -> None:
    found = measured([1, 0, 2], [0, 0, 3], [(5, 9), (5, 4), (3, 8)])
    assert found.right.tolist() == [1.0, 0.5, 0.0]
    assert found.right[found.shorter].tolist() == [1.0, 0.0]


def test_a_model_that_goes_by_length_correlates_with_it() -> None:
    lengths = [(3, 9), (8, 4), (5, 5), (7, 1)]
    by_length = measured([float(a) for a, _ in lengths], [float(b) for _, b in lengths], lengths)
    assert by_length.length_correlation() == pytest.approx(1.0)
    assert measured([1.0] * 4, [0.0] * 4, lengths).length_correlation() == 0.0


def test_agreement_is_the_share_of_pairs_ranked_alike() -> None:
    first, second = (measured(scores, [0.0] * 3, [(1, 1)] * 3) for scores in ([1.0, -1.0, 2.0], [3.0, 1.0, 0.5]))
    assert agreement(first, second) == pytest.approx(2 / 3)
    assert agreement(first, first) == 1.0
