"""Hashed words, n-grams and numbers, against the same done slowly."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.words import Ragged, ngrams, numbers, ragged, sequence_hashes, words

ROWS = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), min_size=1, max_size=6)


def hashed(rows: list[list[str]]) -> Ragged:
    return ragged(pl.Series(rows, dtype=pl.List(pl.String)))


def split(values: Ragged) -> list[list[int]]:
    return [values.values[start:stop].tolist() for start, stop in pairwise(values.offsets)]


@given(ROWS, st.integers(1, 5))
def test_ngrams_are_equal_where_the_runs_are(rows: list[list[str]], size: int) -> None:
    runs = [[tuple(row[at : at + size]) for at in range(max(len(row) - size + 1, 1))] for row in rows]
    hashes = split(ngrams(hashed(rows), size))
    assert [len(row) for row in hashes] == [len(row) for row in runs]
    seen: dict[int, tuple[str, ...]] = {}
    for row, row_hashes in zip(runs, hashes, strict=True):
        for run, value in zip(row, row_hashes, strict=True):
            assert seen.setdefault(value, run) == run
    assert len(seen) == len({run for row in runs for run in row})


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=6), min_size=1, max_size=6))
def test_sequences_have_one_hash_exactly_if_they_are_equal(rows: list[list[str]]) -> None:
    hashes = sequence_hashes(hashed(rows)).tolist()
    assert len(set(hashes)) == len({tuple(row) for row in rows})
    assert all((hashes[0] == value) == (rows[0] == row) for value, row in zip(hashes, rows, strict=True))


def test_rows_of_values_know_their_row() -> None:
    assert hashed([["a", "b"], [], ["c"]]).rows.tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann has 1,000 apples and 2.5 pears", ["1000", "2.5"]),
        ("twice as many as seven, half of them", ["2", "7", "1/2"]),
        ("someone weighs a ton", []),
        ("47+85=?", ["47", "85"]),
        ("the 3rd of 12,5 and 1,234,567.8", ["3", "12", "5", "1234567.8"]),
        ("٣ زائد ٤", ["٣", "٤"]),
    ],
)
def test_numbers_of_a_text(text: str, expected: list[str]) -> None:
    assert numbers(pl.Series([text]))[0].to_list() == expected


def test_punctuation_does_not_count_but_signs_do() -> None:
    plain, marked, other = split(words(pl.Series(["what is 3 + 4", "what, is 3 + 4?!", "what is 3 - 4"])))
    assert plain == marked
    assert plain != other


def test_where_words_have_no_blanks_each_character_is_one() -> None:
    text, quoted, other = split(words(pl.Series(["一只兔子吃3根", "题目：一只兔子吃3根。", "一只兔子吃5根"])))
    assert len(text) == 7
    assert quoted[-7:] == text
    assert sum(one == two for one, two in zip(text, other, strict=True)) == 6


def test_text_without_words_is_like_no_other() -> None:
    first, second = split(words(pl.Series(["?!", "..."])))
    assert len(first) == len(second) == 1
    assert first != second


def test_hashes_spread_over_all_bits() -> None:
    grams = ngrams(hashed([[str(number) for number in range(2_000)]]), 2).values
    bits = np.unpackbits(grams.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert bits.min() > 0.4
    assert bits.max() < 0.6
