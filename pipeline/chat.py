"""How a conversation becomes text and a completion becomes thinking and answer.

DeepSeek-R1 (Table 1) asks for `<think>…</think><answer>…</answer>`. The template lives in chat_template.jinja and goes
with every model, so whoever loads a checkpoint renders what it was trained on.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
import jinja2.sandbox

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
BOS, EOS = "<bos>", "<eos>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
MARKERS = ("<pad>", BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>", *TAGS)
"""Texts with a meaning in the template: none of them may occur inside a prompt, a thinking or an answer."""

_COMPLETION = re.compile(r"<think>(.*?)</think><answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model said, taken apart. `well_formed` is False where the tags are not there once and in order."""

    thinking: str
    answer: str
    well_formed: bool


@cache
def _template() -> jinja2.Template:
    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(CHAT_TEMPLATE, globals={"raise_exception": raise_exception})


def render(
    messages: list[dict[str, str]], *, add_generation_prompt: bool = False, bos: str = BOS, eos: str = EOS
) -> str:
    """A conversation as text. Messages have `role`, `content` and, for the assistant, `reasoning_content`."""
    return _template().render(
        messages=messages, add_generation_prompt=add_generation_prompt, bos_token=bos, eos_token=eos
    )


def render_prompt(prompt: str, *, bos: str = BOS) -> str:
    """The text before a completion to one question: `<bos><|user|>…<|assistant|>`."""
    return render([{"role": "user", "content": prompt}], add_generation_prompt=True, bos=bos)


def render_completion(thinking: str, answer: str, *, eos: str = EOS) -> str:
    """The text of a completion, end of sequence included: `<think>…</think><answer>…</answer><eos>`."""
    turn = [{"role": "assistant", "content": answer, "reasoning_content": thinking}]
    return render(turn, bos="", eos=eos).removeprefix("<|assistant|>")


def parse_completion(text: str, *, eos: str = EOS) -> Completion:
    """Take a completion apart. Never raises: what does not parse is not well formed and has an empty answer."""
    body = text.removesuffix(eos)
    once = all(body.count(tag) == 1 for tag in TAGS)  # else the search would try every pair of them
    match = _COMPLETION.fullmatch(body) if once else None
    if match is None or any(marker in part for part in match.groups() for marker in MARKERS):
        return Completion(thinking=body, answer="", well_formed=False)
    return Completion(match[1], match[2], well_formed=True)
