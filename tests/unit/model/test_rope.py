import math

import pytest
import torch

from pipeline.model.parts import Rope
from pipeline.model.rope import inverse_frequencies, rotate, rotations

PLAIN = Rope("default", 10000.0)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("interleaved", [True, False])
def test_query_times_key_depends_on_their_distance_alone(interleaved: bool) -> None:
    query, key = random(1, 1, 12), random(1, 1, 12, seed=1)

    def product(query_at: int, key_at: int) -> torch.Tensor:
        return (
            rotate(query, rotations(PLAIN, torch.tensor([query_at]), 8), interleaved)
            * rotate(key, rotations(PLAIN, torch.tensor([key_at]), 8), interleaved)
        ).sum()

    torch.testing.assert_close(product(17, 5), product(112, 100))
    assert abs(product(17, 5) - product(17, 9)) > 1e-3


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotation_keeps_what_is_not_rotary_and_passes_gradcheck(interleaved: bool) -> None:
    x = random(5, 3, 10).double().requires_grad_()
    turns = rotations(PLAIN, torch.arange(5), 6).to(torch.complex128)
    assert torch.equal(rotate(x, turns, interleaved)[..., :4], x[..., :4])
    assert torch.autograd.gradcheck(lambda given: rotate(given, turns, interleaved), x)


def test_position_zero_stays_where_it_is() -> None:
    x = random(1, 2, 8)
    assert torch.equal(rotate(x, rotations(PLAIN, torch.tensor([0]), 8), True), x)


def test_bfloat16_is_turned_in_float32() -> None:
    x, turns = random(4, 2, 8).bfloat16(), rotations(PLAIN, torch.arange(4), 8)
    assert torch.equal(rotate(x, turns, True), rotate(x.float(), turns, True).bfloat16())


def test_yarn_keeps_fast_pairs_and_slows_slow_ones_by_the_factor() -> None:
    plain, _ = inverse_frequencies(PLAIN, 64)
    yarn, scale = inverse_frequencies(Rope("yarn", 10000.0, 4.0, 4096), 64)
    torch.testing.assert_close(yarn[0], plain[0])
    torch.testing.assert_close(yarn[-1], plain[-1] / 4)
    assert scale == pytest.approx(0.1 * math.log(4) + 1)
