"""Near duplicates by signatures, against the similarity that they estimate."""

import numpy as np
import polars as pl
import pytest

from pipeline.data.duplicates import first_equal, near_pairs, sharing, signatures
from pipeline.data.words import Ragged, ngrams, words

TEXT = (
    "a farmer walks to the market every morning with a basket full of eggs that he sells to his neighbours one by one "
    "until the basket is empty and the sun stands high above the roofs of the old town where his sister keeps a shop"
)


def shingles(*texts: str) -> Ragged:
    return ngrams(words(pl.Series(texts, dtype=pl.String)), 3)


def similarity(first: str, second: str) -> float:
    rows = [{tuple(text.split()[at : at + 3]) for at in range(len(text.split()) - 2)} for text in (first, second)]
    return len(rows[0] & rows[1]) / len(rows[0] | rows[1])


def found(texts: list[str], threshold: float, blocks: list[int] | None = None) -> list[tuple[int, int]]:
    keys = np.array(blocks or [7] * len(texts), dtype=np.uint64)
    later, earlier, _ = near_pairs(keys, signatures(shingles(*texts), 64), threshold)
    return list(zip(later.tolist(), earlier.tolist(), strict=True))


def test_first_of_equal_keys() -> None:
    assert first_equal(np.array([5, 3, 5, 3, 9], dtype=np.uint64)).tolist() == [0, 1, 0, 1, 4]


def test_only_rows_that_share_their_block_are_looked_at() -> None:
    blocks = np.array([1, 2, 1, 3, 2], dtype=np.uint64)
    assert sharing(blocks, np.array([0, 1, 2, 3])).tolist() == [0, 2]


@pytest.mark.parametrize("changed", [1, 3, 8, 20])
def test_estimated_similarity_is_near_the_true_one(changed: int) -> None:
    """With 512 slots the standard deviation of the estimate is at most 0.022."""
    other = " ".join(f"{word}q" if at < changed else word for at, word in enumerate(TEXT.split()))
    signed = signatures(shingles(TEXT, other), 512)
    estimate = ((signed[0] == signed[1]).mean() - 1 / 256) / (1 - 1 / 256)
    assert estimate == pytest.approx(similarity(TEXT, other), abs=0.08)


def test_a_changed_word_is_a_near_duplicate_and_another_text_is_not() -> None:
    assert found([TEXT, TEXT.replace("farmer", "baker"), TEXT[::-1]], 0.85) == [(1, 0)]


def test_rows_of_different_blocks_are_never_near_duplicates() -> None:
    assert found([TEXT, TEXT + " soon"], 0.5, blocks=[1, 2]) == []


def test_of_a_chain_of_copies_only_the_first_stays() -> None:
    chain = [TEXT]
    for word in ("farmer", "eggs", "sister"):
        chain.append(chain[-1].replace(word, word.upper()))
    assert [later for later, _ in found(chain, 0.8)] == [1, 2, 3]


def test_a_bucket_of_many_copies_takes_linear_time() -> None:
    pairs = found([f"{TEXT} {name}" for name in range(5_000)], 0.85)
    assert len(pairs) == 4_999


def test_nothing_comes_of_nothing() -> None:
    assert found([], 0.85) == []
    assert found([TEXT], 0.85) == []
