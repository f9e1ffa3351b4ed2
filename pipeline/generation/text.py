"""The text of a sequence while its tokens come one by one, and the stop strings in it.

Different from the textbook: tokens are not decoded one by one, as a token may be a part of a character, or be spelled
otherwise at the beginning of a text. The last few are decoded together, with and without the new one, and the
difference counts once it ends in a whole character.
"""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

UNFINISHED = "\ufffd"  # how a decoder writes bytes that are no character yet


def decode(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    """The tokens as text, special ones included."""
    return tokenizer.backend_tokenizer.decode(tokens, skip_special_tokens=False)


class TextStream:
    """The text so far, given out in pieces as soon as no later token can take anything of it back."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stops: Iterable[str]) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._tokens: list[int] = []
        self._start = self._end = 0  # of the tokens that are decoded again before the next ones; up to _end all is text
        self._given = 0  # characters
        self.text = ""  # of whole characters, cut before a stop string
        self.stopped = False

    def push(self, token: int) -> None:
        """One more token; sets `stopped` where a stop string is complete with it."""
        assert not self.stopped
        self._tokens.append(token)
        known = decode(self._tokenizer, self._tokens[self._start : self._end])
        now = decode(self._tokenizer, self._tokens[self._start :])
        if now.endswith(UNFINISHED):
            return
        searched = len(self.text)
        self.text += now[len(known) :]
        self._start, self._end = self._end, len(self._tokens)
        places = [self.text.find(stop, max(0, searched - len(stop) + 1)) for stop in self._stops]
        if found := [place for place in places if place >= 0]:
            self.text = self.text[: min(found)]
            self.stopped = True

    def take(self) -> str:
        """What was not given out yet, but for an end that a stop string may begin with."""
        safe = len(self.text)
        if not self.stopped:
            safe -= max((overlap(self.text, stop) for stop in self._stops), default=0)
        return self._give(self.text, safe)

    def take_rest(self, text: str) -> str:
        """What was not given out yet of the finished `text`."""
        return self._give(text, len(text))

    def _give(self, text: str, until: int) -> str:
        piece = text[self._given : until]
        self._given = max(self._given, until)
        return piece


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, and is longer than."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
