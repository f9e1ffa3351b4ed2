"""Which texts a step has, and who wrote them."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.generation.requests import Completion, Request
from pipeline.gkd.texts import Texts, is_students, prompt_length, student_engine

from .toys import DENSE, decoder, examples, options, tokenizer


@given(st.floats(0, 1), st.integers(0, 200))
def test_the_student_writes_its_share(share: float, count: int) -> None:
    assert sum(is_students(place, share) for place in range(count)) == math.floor(count * share)


class Scribe:
    """Writes three times the token 7, in reversed order of the requests, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked += requests
        tokens = np.full(3, 7)
        return [
            Completion(place, 0, tokens, np.zeros(3, dtype=np.float32), "", "end")
            for place in reversed(range(len(requests)))
        ]


def test_every_other_completion_is_the_students_and_the_prompts_stay() -> None:
    scribe, made = Scribe(), examples()
    texts = Texts(made, options(prompts=4), seed=0, generate=scribe)
    theirs = Texts(made, options(prompts=4, **{"lambda": 0.0}), seed=0, generate=scribe)
    for step in range(3):
        chosen, written = texts[step]
        assert len(written) == 2
        for place, (ours, original) in enumerate(zip(chosen, theirs[step][0], strict=True)):
            length = prompt_length(original)
            assert (ours.tokens[:length] == original.tokens[:length]).all()
            assert prompt_length(ours) == length
            assert (ours is original) == (place % 2 == 0)
            if ours is not original:
                assert (ours.tokens[length:] == 7).all()
                assert ours.counts[length:].all()
    assert len({request.identity for request in scribe.asked}) == len(scribe.asked) == 6


def test_without_a_share_nothing_is_asked_of_the_student() -> None:
    def refuse(requests: Sequence[Request]) -> list[Completion]:
        pytest.fail("asked")

    assert Texts(examples(), options(**{"lambda": 0.0}), 0, refuse)[0][1] == []


@given(st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_has_every_example_once(count: int, seed: int) -> None:
    made = examples(count)
    texts = Texts(made, options(prompts=count, **{"lambda": 0.0}), seed, Scribe())
    for step in range(3):
        assert {id(example) for example in texts[step][0]} == {id(example) for example in made}


def test_what_does_not_fit_into_the_student_is_refused() -> None:
    student = decoder(DENSE, 0)
    with pytest.raises(InputError, match=r"on_policy.max_new_tokens = 61: must, with the longest prompt's 4 tokens"):
        student_engine(student, tokenizer(), examples(), options(max_new_tokens=61), 0)
    student_engine(student, tokenizer(), examples(), options(max_new_tokens=60), 0)
