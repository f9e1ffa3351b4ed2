"""The engine's side: thinking that is cut short, messages that are few, requests that are given up."""

import queue
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.model.checkpoint import load_model
from pipeline.model.tokenizer import load_tokenizer
from pipeline.serving import frames
from pipeline.serving.worker import Worker, serve

CLOSING = "</think><answer>"
Updates = dict[tuple[int, int], dict[str, Any]]


@pytest.fixture(scope="module")
def parts(model: Path) -> tuple[Any, Any]:
    return load_model(model), load_tokenizer(model)


def submit(parts: tuple[Any, Any], request: int, **changed: Any) -> dict[str, Any]:
    encode = parts[1].backend_tokenizer.encode
    message = {"do": "submit", "request": request, "prompt": encode("1+1=?", add_special_tokens=False).ids}
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40}
    form = {"chat": True, "opened": True, "budget": None, "alternatives": None}
    closing = encode(CLOSING, add_special_tokens=False).ids
    return message | form | {"samples": 1, "identity": "a", "sampling": sampling, "closing": closing} | changed


def answer(parts: tuple[Any, Any], *messages: dict[str, Any]) -> tuple[Updates, list[Any]]:
    """Whole samples, and the messages they came in."""
    worker = Worker(*parts, {"slots": 4, "max_length": 4096})
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for message in messages:
        inbox.put(message)
    sent: list[Any] = []
    expected = sum(message.get("samples", 0) for message in messages)
    expected -= sum(message["samples"] for message in messages for other in messages if gives_up(other, message))
    done: Updates = {}

    def send(message: Any) -> None:
        sent.append(message)
        for request, number, thinking, said, tokens, thought, finish, _ in message["updates"]:
            sample = done.setdefault((request, number), {"thinking": "", "said": "", "tokens": 0, "thought": 0})
            sample["thinking"] += thinking
            sample["said"] += said
            sample["tokens"] += tokens
            sample["thought"] += thought
            assert "finish" not in sample, "nothing comes after the end"
            if finish:
                sample["finish"] = finish
        if sum("finish" in sample for sample in done.values()) == expected:
            inbox.put(None)

    worker.run(inbox, send)
    return done, sent


def gives_up(message: dict[str, Any], submitted: dict[str, Any]) -> bool:
    return message["do"] == "cancel" and submitted["do"] == "submit" and message["request"] == submitted["request"]


def test_thinking_ends_at_its_budget_and_the_answer_follows(parts: tuple[Any, Any]) -> None:
    free, _ = answer(parts, submit(parts, 1))
    cut, _ = answer(parts, submit(parts, 1, budget=5, samples=2))
    assert set(cut) == {(1, 0), (1, 1)}
    for sample in cut.values():
        assert sample["thought"] == 5 + 2  # and the two marks
        assert len(sample["thinking"]) >= 5
        assert sample["said"]
        assert sample["tokens"] <= 40
    assert free[1, 0]["thought"] > 7
    assert cut[1, 0]["thinking"] != cut[1, 1]["thinking"]


def test_a_budget_that_leaves_no_room_ends_the_sample(parts: tuple[Any, Any]) -> None:
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 2}
    done, _ = answer(parts, submit(parts, 1, budget=0, samples=3, sampling=sampling), submit(parts, 2))
    assert [done[1, number]["finish"] for number in range(3)] == ["length"] * 3
    assert done[2, 0]["finish"]


def test_the_same_request_gets_the_same_text_in_any_company(parts: tuple[Any, Any]) -> None:
    alone, _ = answer(parts, submit(parts, 7, chat=False))
    among, _ = answer(parts, *(submit(parts, n, chat=False, identity=str(n) if n != 7 else "a") for n in range(9)))
    assert among[7, 0] == alone[7, 0]
    assert len({sample["said"] for sample in among.values()}) > 5


def test_tokens_of_many_steps_share_a_message(parts: tuple[Any, Any]) -> None:
    done, sent = answer(parts, *(submit(parts, n, identity=str(n)) for n in range(4)))
    tokens = sum(sample["tokens"] for sample in done.values())
    assert len(sent) < tokens / 3


def test_what_is_given_up_is_neither_written_nor_told(parts: tuple[Any, Any]) -> None:
    messages = [submit(parts, 1, samples=8), submit(parts, 2), {"do": "cancel", "request": 1}]
    done, _ = answer(parts, *messages)
    assert set(done) == {(2, 0)}


@pytest.mark.parametrize("is_model", [True, False])
def test_a_server_that_goes_while_the_model_loads_is_no_error(model: Path, tmp_path: Path, is_model: bool) -> None:
    ours, theirs = socket.socketpair()
    options = {"folder": str(model if is_model else tmp_path), "threads": torch.get_num_threads()}
    ours.sendall(frames.pack(options | {"dtype": "float32", "hot": None, "slots": 2, "max_length": 64}))
    ours.close()
    with theirs:
        serve(theirs)
