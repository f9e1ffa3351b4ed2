"""Text of growing token lists: whole characters, stop strings wherever tokens are cut."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.generation.text import TextStream, decode


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and merges that cut characters in the middle: '→' is E2 86 92, its last two are one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = _spelled("→".encode()[1:])
    vocabulary = {token: index for index, token in enumerate([*alphabet, merged, "ab"])}
    backend = Tokenizer(models.BPE(vocabulary, [(merged[0], merged[1]), ("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def _spelled(content: bytes) -> str:
    """Bytes as the byte-level alphabet writes them."""
    backend = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelling = {"→": backend.pre_tokenize_str("→")[0][0]}
    return spelling["→"][-len(content) :]


TOKENIZER = _byte_tokenizer()


def _pushed(text: str, stops: list[str]) -> tuple[TextStream, list[str], list[int]]:
    stream, pieces = TextStream(TOKENIZER, stops), []
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    for number, token in enumerate(tokens):
        stream.push(token)
        pieces.append(stream.take())
        if stream.stopped:
            return stream, pieces, tokens[: number + 1]
    return stream, pieces, tokens


def test_a_character_of_several_tokens_appears_when_it_is_whole() -> None:
    stream, pieces, _ = _pushed("a→é🙂!", [])
    assert pieces == ["a", "", "→", "", "é", "", "", "", "🙂", "!"]
    assert stream.text == "a→é🙂!"


def test_a_stop_string_may_lie_across_tokens_and_within_one() -> None:
    assert _pushed("x→→y", ["→→"])[0].text == "x"
    stream, pieces, tokens = _pushed("cab!", ["b"])
    assert (stream.text, pieces, len(tokens)) == ("ca", ["c", "a"], 2)


def test_what_may_become_a_stop_string_is_held_back_and_given_when_it_does_not() -> None:
    _, pieces, _ = _pushed("1\n\n2\n\n\n", ["\n\n\n"])
    assert pieces == ["1", "", "", "\n\n2", "", "", ""]


def test_the_earliest_of_several_stop_strings_cuts() -> None:
    assert _pushed("one two", ["two", "e t"])[0].text == "on"


def test_the_rest_is_given_at_the_end() -> None:
    stream, pieces, _ = _pushed("1\n", ["\n\n"])
    assert pieces == ["1", ""]
    assert stream.take_rest("1\n") == "\n"


@settings(max_examples=200)
@given(st.text("ab→é\n", max_size=20), st.lists(st.text("ab→é\n", min_size=1, max_size=3), max_size=3))
def test_it_is_the_text_before_the_first_complete_stop_string(text: str, stops: list[str]) -> None:
    stream, pieces, tokens = _pushed(text, stops)
    so_far = decode(TOKENIZER, tokens)
    assert stream.stopped == any(stop in so_far for stop in stops)
    assert stream.stopped or so_far == text
    expected = so_far[: min((so_far.find(stop) for stop in stops if stop in so_far), default=len(so_far))]
    assert stream.text == expected
    assert "".join(pieces) + stream.take_rest(expected) == expected
