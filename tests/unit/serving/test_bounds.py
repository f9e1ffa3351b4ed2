"""Work that a request can cause is bounded by its size, and what it waits for lets others go on."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.serving.schema import Asked, ChatRequest, CompletionRequest, Message
from pipeline.serving.wording import Wording

MANY = 100_000
UNKNOWN = {f"x{number}": 1 for number in range(MANY)}
BODIES: dict[str, tuple[type[Asked], dict[str, Any]]] = {
    "prompts that are halves": (CompletionRequest, {"prompt": [1.5] * MANY}),
    "tokens that are negative": (CompletionRequest, {"prompt": [-1] * MANY}),
    "tokens, the last a half": (CompletionRequest, {"prompt": [1] * MANY + [1.5]}),
    "empty prompts": (CompletionRequest, {"prompt": [[]] * MANY}),
    "a prompt of halves": (CompletionRequest, {"prompt": [[1.5] * MANY]}),
    "parts that are none": (ChatRequest, {"messages": [{"role": "user", "content": [1] * MANY}]}),
    "parts that are empty": (ChatRequest, {"messages": [{"role": "user", "content": [{}] * MANY}]}),
    "messages of such parts": (ChatRequest, {"messages": [{"content": [{}] * 100}] * 1_000}),
    "unknown fields": (ChatRequest, {"messages": [{"role": "user", "content": "a"}]} | UNKNOWN),
    "unknown fields of a message": (ChatRequest, {"messages": [{"role": "user", "content": "a"} | UNKNOWN]}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_has_few_errors_however_much_is_wrong_with_it(name: str) -> None:
    form, body = BODIES[name]
    with pytest.raises(ValidationError) as refused:
        form.model_validate({"model": "toy"} | body)
    assert refused.value.error_count() < 10


def test_an_unknown_field_is_told_by_its_name() -> None:
    with pytest.raises(ValidationError) as refused:
        ChatRequest.model_validate({"model": "toy", "messages": [{"role": "user"}], "sudo": 1, "root": 2})
    assert [error["loc"] for error in refused.value.errors()] == [("sudo",)]


def test_metadata_may_be_large() -> None:
    ChatRequest.model_validate({"model": "toy", "messages": [{"role": "user", "content": "a"}], "metadata": UNKNOWN})


def test_a_long_text_is_made_into_tokens_while_others_go_on(model: Path) -> None:
    wording, text = Wording(model), "1+1=" * 250_000
    thread = threading.Thread(target=wording.encode, args=(text,))
    thread.start()
    turns = 0
    while thread.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 5


def test_all_texts_of_a_message_are_counted() -> None:
    parts = [{"type": "text", "text": "abc"}, {"type": "text", "text": "d"}]
    fields = {"role": "assistant", "content": parts, "reasoning": "ef", "reasoning_content": "g"}
    assert Message.model_validate(fields).size == 7
    assert Message.model_validate({"role": "user"}).size == 0
