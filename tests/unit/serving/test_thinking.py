"""Thinking and answer are told apart however the text is cut into pieces."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.serving.thinking import Thinking

TEXTS = [
    ("<think>a+b</think><answer>7</answer>", False, "a+b", "7"),
    ("\n<think>a</think>\n\n<answer>7</answer>", False, "a", "7"),
    ("a</think>\n\n7 <b>", True, "a", "7 <b>"),  # as DeepSeek's own releases write
    ("a</think><answer>7</answer>", True, "a", "7"),
    ("only thought </thin", True, "only thought </thin", ""),
    ("7 without thinking", False, "", "7 without thinking"),
    ("<answer>7</answer>", False, "", "7"),
    ("<thinner>", False, "", "<thinner>"),
    ("<thi", False, "", "<thi"),
    ("<think>a</think><answer>x</ans", False, "a", "x</ans"),
    ("<think>a</think><answer>x</answer> and more", False, "a", "x and more"),
    ("<think>a < b</thin></think>", False, "a < b</thin>", ""),
    ("", False, "", ""),
]


@pytest.mark.parametrize(("text", "opened", "thinking", "answer"), TEXTS)
@given(cuts=st.sets(st.integers(0, 40)))
def test_pieces_make_the_same_as_the_whole(text: str, opened: bool, thinking: str, answer: str, cuts: set[int]) -> None:
    split, places = Thinking(opened), [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    parts = [split.push(text[start:end]) for start, end in pairwise(places)]
    parts.append(split.end())
    assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == (thinking, answer)


def test_text_that_no_mark_can_begin_with_is_not_held_back() -> None:
    split = Thinking(opened=True)
    assert split.push("one <") == ("one ", "")
    assert split.undecided
    assert split.push("b") == ("<b", "")
    assert split.open
    assert not split.undecided
