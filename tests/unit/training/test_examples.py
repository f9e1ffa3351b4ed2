"""From traces to what a model is trained on."""

import polars as pl
import pytest

from pipeline import chat
from pipeline.errors import InputError
from pipeline.model.tokenizer import character_tokenizer
from pipeline.records import Problem, Trace, schema
from pipeline.training.examples import text_examples, worked_examples

PROBLEMS = pl.DataFrame(
    [Problem(f"p{n}", "made", "sum", f"{n}+{n}=?", str(2 * n), "numeric", "", None, "train") for n in range(3)],
    schema=schema(Problem),
)
TRACES = pl.DataFrame([Trace(f"p{n}", "so it is " * n, str(2 * n), "made") for n in (2, 0, 1)], schema=schema(Trace))


def test_the_model_predicts_thinking_and_answer_and_is_given_the_prompt() -> None:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    for example, n in zip(worked_examples(tokenizer, PROBLEMS, TRACES, 100), (2, 0, 1), strict=True):
        said = tokenizer.decode(example.tokens[example.counts].tolist())
        given = tokenizer.decode(example.tokens[~example.counts].tolist())
        assert given == chat.render_prompt(f"{n}+{n}=?")
        assert said == chat.render_completion("so it is " * n, str(2 * n))


def test_a_trace_that_the_model_has_no_room_for_is_named() -> None:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    longest = len(worked_examples(tokenizer, PROBLEMS, TRACES, 100)[0].tokens)
    assert len(worked_examples(tokenizer, PROBLEMS, TRACES, longest)) == 3
    with pytest.raises(InputError, match=f"a trace of problem p2 has {longest} tokens .* = {longest - 1};"):
        worked_examples(tokenizer, PROBLEMS, TRACES, longest - 1)


def test_a_text_that_the_model_has_no_room_for_is_counted_off() -> None:
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    assert [len(example) for example in text_examples(tokenizer, ["1+1", "1+1=2"], 5)] == [3, 5]
    with pytest.raises(InputError, match=r"text 2 of the corpus has 5 tokens: .* max_position_embeddings = 4;"):
        text_examples(tokenizer, ["1+1", "1+1=2"], 4)
