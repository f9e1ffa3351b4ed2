"""Conversations survive their way through the template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import chat

PLAIN = st.text().filter(lambda text: not any(marker in text for marker in chat.MARKERS))


@given(PLAIN, PLAIN)
def test_a_completion_comes_apart_as_it_was_put_together(thinking: str, answer: str) -> None:
    completion = chat.parse_completion(chat.render_completion(thinking, answer))
    assert completion == chat.Completion(thinking, answer, well_formed=True)


@given(PLAIN, PLAIN, PLAIN)
def test_prompt_and_completion_are_the_conversation(prompt: str, thinking: str, answer: str) -> None:
    turns = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer, "reasoning_content": thinking},
    ]
    assert chat.render_prompt(prompt) + chat.render_completion(thinking, answer) == chat.render(turns)


def test_the_thinking_of_earlier_turns_stays() -> None:
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "because"}]
    assert chat.render(turn + turn).count("because") == 2


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="tool"):
        chat.render([{"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "<think>a</think>42",
        "<think>a<answer>42</answer>",
        "<think>a</think><answer>42",
        "x<think>a</think><answer>42</answer>",
        "<think>a</think><answer>42</answer> more",
        "<think>a</think><think>b</think><answer>42</answer>",
        "<think>a</think><answer>1</answer><answer>42</answer>",
        "<think>a<|user|>b</think><answer>42</answer>",
    ],
)
def test_anything_else_is_not_well_formed_and_has_no_answer(text: str) -> None:
    completion = chat.parse_completion(text)
    assert not completion.well_formed
    assert completion.answer == ""


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    chat.parse_completion(text)
