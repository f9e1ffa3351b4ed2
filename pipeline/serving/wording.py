"""From requests to the tokens that a model reads: its tokenizer and chat template, in the server's own process.

Different from other servers: a message must not contain the template's own marks. There they would be read as the marks
themselves, and a user could write the assistant's turn.
"""

import re
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.model.tokenizer import load_tokenizer
from pipeline.serving.errors import RequestError
from pipeline.serving.schema import Message
from pipeline.serving.thinking import ANSWER, CLOSE, OPEN


class Wording:
    """Of one model folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(folder)
        self._template = self.tokenizer.chat_template
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        written = {mark for mark in chat.MARKERS if mark in str(self._template)}
        self._marks = re.compile("|".join(map(re.escape, sorted(special | written))) or "(?!)")
        closing = CLOSE + ANSWER if ANSWER in str(self._template) else f"\n{CLOSE}\n\n"
        self.closing: list[int] = self.encode(closing)
        """What closes a thinking that is cut short, and opens the answer."""

    def encode(self, text: str) -> list[int]:
        # Only the forms for several texts let other threads run meanwhile: the event loop, for a text of 1 MB.
        return self.tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def prompt(self, given: str | list[int]) -> list[int]:
        """Tokens of a prompt of /v1/completions. Raises RequestError."""
        if isinstance(given, str):
            return self.encode(given)
        if max(given) >= len(self.tokenizer):
            raise RequestError(400, f"prompt: token {max(given)}: must be in the model's vocabulary", param="prompt")
        return given

    def chat(self, messages: list[Message]) -> tuple[list[int], bool]:
        """Tokens of a conversation, and whether they end with the thinking opened. Raises RequestError."""
        turns: list[dict[str, str]] = []
        for place, message in enumerate(messages):
            thought = message.reasoning if message.reasoning is not None else message.reasoning_content
            for field, text in (("content", message.text), ("reasoning", thought or "")):
                if found := self._marks.search(text):
                    raise RequestError(
                        400,
                        f"messages[{place}].{field}: contains {found[0]!r}, a mark of the chat template: must not",
                        param=f"messages[{place}].{field}",
                        code="template_mark",
                    )
            role = "system" if message.role == "developer" else message.role
            turns.append({"role": role, "content": message.text} | ({"reasoning_content": thought} if thought else {}))
        if self._template is None:
            raise RequestError(400, "this model has no chat template: use /v1/completions", code="no_chat_template")
        try:
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except (TemplateError, ValueError, TypeError) as error:
            raise RequestError(400, f"messages: the chat template refuses them: {error}", param="messages") from None
        return self.encode(text), text.rstrip().endswith(OPEN)
