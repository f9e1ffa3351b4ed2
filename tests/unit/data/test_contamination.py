"""Overlap with evaluation prompts, against the same looked up pair by pair."""

from itertools import combinations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.contamination import EvaluationIndex
from pipeline.data.words import numbers
from pipeline.params import Decontamination

PROMPT = "a train travels 270 miles in 3 hours and stops twice on the way so how far does it travel in 5 hours"
WORD_LIST = ("splat", "lemon", "carrot", "muffin", "piston", "canvas", "walnut")


def overlaps(evaluation: list[str], rows: list[str], **options: float) -> dict[int, str]:
    ids = pl.Series([f"id{number}" for number in range(len(evaluation))], dtype=pl.String)
    texts, sample = (pl.Series(prompts, dtype=pl.String) for prompts in (evaluation, [*evaluation, *rows]))
    index = EvaluationIndex(ids, texts, sample, Decontamination.model_validate(options))
    return index.overlaps(pl.Series(rows, dtype=pl.String))


def test_a_prompt_inside_a_longer_row_is_found() -> None:
    rows = ["something else entirely, with 270 and 3 and 2 and 5", f"please solve this for me: {PROMPT} thank you"]
    assert overlaps([PROMPT], rows) == {1: "100% of the 8-grams of problem id0"}


@pytest.mark.parametrize(("number", "other"), [("270", "360"), ("twice", "three times"), ("5 hours", "6 hours")])
def test_the_same_question_with_other_numbers_is_another_question(number: str, other: str) -> None:
    assert overlaps([PROMPT], [PROMPT.replace(number, other)]) == {}


def test_less_overlap_than_asked_is_none() -> None:
    half = " ".join(PROMPT.split()[:15]) + " and then there are 5 of them left behind"
    assert overlaps([PROMPT], [half], overlap=0.5) != {}
    assert overlaps([PROMPT], [half], overlap=0.6) == {}


def test_prompt_shorter_than_an_ngram_overlaps_with_itself_only() -> None:
    assert list(overlaps(["47+85=?"], ["47+85=?", "47+85+3=?", "85+47=?"])) == [0]


def test_numbers_must_be_there_in_the_order_of_the_prompt() -> None:
    swapped = PROMPT.replace("270", "x").replace("in 3", "in 270").replace("x", "3")
    assert overlaps([PROMPT], [swapped], overlap=0.1) == {}


def test_numbers_must_be_there_as_often_as_in_the_prompt() -> None:
    example = "find the prime factors of {} and write them with signs (example: for 12 the answer would be 2 * 2 * 3)"
    assert overlaps([example.format(3)], [example.format(866), example.format(12)], phrase_rows=3) == {}


def test_common_phrases_do_not_count() -> None:
    rows = [f"please spell the following word of the english language backward: {word}" for word in WORD_LIST]
    assert list(overlaps(rows[:2], rows[2:], phrase_rows=20)) == list(range(len(rows) - 2))
    assert overlaps(rows[:2], rows[2:], phrase_rows=3) == {}
    assert list(overlaps(rows[:2], [*rows[2:], f"{rows[0]} now"], phrase_rows=3)) == [len(rows) - 2]


def test_what_is_copied_often_is_found_all_the_same() -> None:
    rows = [f"{word}: {PROMPT}" for word in WORD_LIST]
    assert list(overlaps([PROMPT], rows, phrase_rows=3)) == list(range(len(rows)))
    assert overlaps([PROMPT], [row.replace("270", "360") for row in rows], phrase_rows=3) == {}


def test_no_evaluation_prompts_no_overlap() -> None:
    assert overlaps([], [PROMPT]) == {}


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "1", "2"]), min_size=1, max_size=8).map(" ".join)


@given(
    st.lists(WORDS, min_size=1, max_size=5, unique=True),
    st.lists(WORDS, min_size=1, max_size=5),
    st.sampled_from([0.3, 0.5, 0.85, 1.0]),
)
def test_finds_what_comparing_every_pair_finds(evaluation: list[str], rows: list[str], overlap: float) -> None:
    def grams(text: str) -> set[tuple[str, ...]]:
        parts = text.split()
        return {tuple(parts[at : at + 3]) for at in range(max(len(parts) - 2, 1))}

    def in_order(prompt: str, row: str) -> bool:
        wanted, held = (numbers(pl.Series([text]))[0].to_list() for text in (prompt, row))
        return any(list(some) == wanted for some in combinations(held, len(wanted)))

    expected = {
        position
        for position, row in enumerate(rows)
        for prompt in evaluation
        if len(grams(prompt) & grams(row)) >= overlap * len(grams(prompt)) and in_order(prompt, row)
    }
    assert set(overlaps(evaluation, rows, overlap=overlap, ngram_words=3)) == expected
