"""Thinking and answer of a completion while it is written.

Different from pipeline.chat.parse_completion, which judges a whole completion: here nothing is refused. What is not
marked as thinking is answer, so a reader always gets all that the model wrote but the marks themselves. It also reads
completions in the form of DeepSeek's own releases, whose prompt opens the thinking and whose answer has no marks.
"""

from enum import Enum, auto

from pipeline.generation.text import overlap

OPEN, CLOSE, ANSWER, END = "<think>", "</think>", "<answer>", "</answer>"


class _State(Enum):
    START = auto()  # <think> may come
    THINKING = auto()
    BETWEEN = auto()  # <answer> may come
    MARKED = auto()  # after <answer>
    PLAIN = auto()  # all the rest is answer


class Thinking:
    """Takes pieces of a completion's text, gives out those of its thinking and its answer."""

    def __init__(self, opened: bool) -> None:
        """`opened`: the prompt ends with <think>."""
        self._state = _State.THINKING if opened else _State.START
        self._held = ""  # text that may be the beginning of a mark

    @property
    def open(self) -> bool:
        """Whether the thinking goes on."""
        return self._state is _State.THINKING

    @property
    def undecided(self) -> bool:
        """Whether some text is held back until more of it is known."""
        return bool(self._held)

    def push(self, text: str) -> tuple[str, str]:
        """One more piece of text; what it adds to (thinking, answer)."""
        self._held += text
        thinking = answer = ""
        while True:
            state = self._state
            match state:
                case _State.START:
                    self._expect(OPEN, _State.THINKING, _State.BETWEEN)
                case _State.BETWEEN:
                    self._expect(ANSWER, _State.MARKED, _State.PLAIN)
                case _State.THINKING:
                    thinking += self._until(CLOSE, _State.BETWEEN)
                case _State.MARKED:
                    answer += self._until(END, _State.PLAIN)
                case _State.PLAIN:
                    answer, self._held = answer + self._held, ""
            if self._state is state:
                return thinking, answer

    def end(self) -> tuple[str, str]:
        """What was held back, now that nothing more comes."""
        held, self._held = self._held, ""
        return (held, "") if self.open else ("", held)

    def _expect(self, mark: str, found: _State, otherwise: _State) -> None:
        text = self._held.lstrip()
        if text.startswith(mark):
            self._held, self._state = text[len(mark) :], found
        elif not mark.startswith(text):
            self._state = otherwise
            if otherwise is _State.PLAIN:
                self._held = text  # R1 writes two line ends after </think>

    def _until(self, mark: str, then: _State) -> str:
        before, found, after = self._held.partition(mark)
        if found:
            self._held, self._state = after, then
            return before
        safe = len(before) - overlap(before, mark)
        self._held = before[safe:]
        return before[:safe]
