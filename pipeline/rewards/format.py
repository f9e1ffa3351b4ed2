"""Whether a completion has its form: thinking and answer tags once, in order, nothing outside (DeepSeek-R1, Table 1).

What is well formed is decided by pipeline.chat, which takes every completion apart; here it gets its reason.
"""

from dataclasses import dataclass

from pipeline.chat import MARKERS, Completion, parse_completion

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True, slots=True)
class Form:
    """A completion taken apart, its score (1.0 or 0.0), and in words what is wrong with it."""

    completion: Completion
    score: float
    reason: str


def check_form(text: str) -> Form:
    """Judge a completion's form. An end token at its end belongs to the form."""
    completion = parse_completion(text)
    return Form(completion, 1.0, "well formed") if completion.well_formed else Form(completion, 0.0, _fault(text))


def _fault(text: str) -> str:
    for tag in _TAGS:
        if text.count(tag) != 1:
            return f"{tag} {text.count(tag)} times"
    if sorted(_TAGS, key=text.index) != list(_TAGS):
        return "tags out of order"
    for marker in MARKERS:
        if marker not in _TAGS and marker in text:
            return f"{marker} inside"
    return "text outside the tags"
