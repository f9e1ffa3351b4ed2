import numpy as np

from pipeline.generation.randomness import sequence_key, uniforms


def _numbers(key: int, count: int) -> np.ndarray:
    return uniforms(np.full(count, key, dtype=np.uint64), np.arange(count, dtype=np.uint64))


def test_it_is_splitmix() -> None:
    # The first outputs of the generator's reference implementation, seeded with 1234567.
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert _numbers(1234567, 4).tolist() == [(value >> 11) * 2.0**-53 for value in reference]


def test_numbers_belong_to_seed_identity_and_sample() -> None:
    keys = [sequence_key(*key) for key in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]]
    assert len({*keys}) == 4
    together = uniforms(np.array(keys, dtype=np.uint64), np.array([3, 0, 7, 3], dtype=np.uint64))
    assert together.tolist() == [_numbers(key, 8)[at] for key, at in zip(keys, (3, 0, 7, 3), strict=True)]


def test_numbers_of_many_sequences_are_uniform_and_unrelated() -> None:
    keys = np.array([sequence_key(0, f"problem {i // 8}", i % 8) for i in range(256)], dtype=np.uint64)
    table = np.stack([uniforms(keys, np.full(256, step, dtype=np.uint64)) for step in range(64)])
    assert table.min() >= 0
    assert table.max() < 1
    counts = np.histogram(table, bins=16, range=(0, 1))[0]
    assert ((counts - 1024) ** 2 / 1024).sum() < 37.7  # chi-square, 15 degrees of freedom: 0.999
    for left, right in ((table[:-1], table[1:]), (table[:, :-1], table[:, 1:])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.03
