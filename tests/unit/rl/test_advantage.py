import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.generation.requests import Completion
from pipeline.rl.advantage import advantages, group_advantages
from pipeline.rl.scoring import SPREAD, ScoredGroup

from .toys import Score, question

rewards = st.lists(st.floats(-2, 2), min_size=2, max_size=16).filter(lambda values: np.std(values) > 1e-3)


def completion(number: int) -> Completion:
    tokens = np.array([3, 4, 5][: number + 1])
    return Completion(0, number, tokens, np.full(len(tokens), -1.0, np.float32), "text", "end")


def group(*values: float) -> ScoredGroup:
    completions = tuple(completion(number % 3) for number in range(len(values)))
    return ScoredGroup(question(1), completions, tuple(Score(value, {"accuracy": value}) for value in values))


def test_by_hand():
    # mean 0.5, standard deviation 0.5
    assert group_advantages(np.array([1.0, 0.0, 0.0, 1.0]), scale_by_std=True).tolist() == [1, -1, -1, 1]
    assert group_advantages(np.array([1.0, 0.0, 0.0, 1.0]), scale_by_std=False).tolist() == [0.5, -0.5, -0.5, 0.5]
    # mean 1, variance (1 + 1 + 1 + 9) / 4 = 3
    assert group_advantages(np.array([0.0, 0.0, 0.0, 4.0]), scale_by_std=True).tolist() == pytest.approx(
        [-1 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5, 3**0.5], abs=1e-6
    )


@given(rewards, st.floats(0.1, 10), st.floats(-3, 3))
def test_scaled_advantages_know_neither_scale_nor_shift_of_the_reward(values: list[float], scale: float, shift: float):
    array = np.array(values)
    ours = group_advantages(array, scale_by_std=True)
    assert ours.mean() == pytest.approx(0, abs=1e-6)
    assert ours.std() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(group_advantages(scale * array + shift, scale_by_std=True), ours, atol=1e-6)


def test_groups_without_spread_are_never_trained_on():
    made = advantages([group(1.0, 1.0, 1.0), group(0.0, 1.0, 0.5), group(0.1, 0.1 + SPREAD / 10)], scale_by_std=False)
    assert [trajectory.advantage for trajectory in made] == [-0.5, 0.5, 0.0]
    assert [trajectory.completion for trajectory in made] == [1, 2, 3]
    assert made[1].tokens.tolist() == [*question(1).prompt, 3, 4]
    assert made[1].engine.tolist() == [-1.0, -1.0]
