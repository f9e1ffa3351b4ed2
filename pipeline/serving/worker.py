"""The engine's process: reads requests from a socket, writes what the model says back to it.

Different from the textbook: no message per token. What a step of the engine brings for all its requests is one message,
and only a completion's first and last tokens are sent at once: those between are gathered for a hundredth of a second,
which nobody sees, and which saves the server and its clients most of their work.

A process holds one model. A second model is a second process, so that nothing that loading it does can touch the first.
An error here is not caught: the process ends, and who started it starts another.
"""

import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from pipeline.errors import InputError
from pipeline.files import digest
from pipeline.generation.engine import Engine
from pipeline.generation.requests import Finish, Piece, Request
from pipeline.generation.text import decode
from pipeline.model.checkpoint import load_model, load_to_answer
from pipeline.model.decoder import Decoder
from pipeline.model.remote import checkpoint_digest
from pipeline.model.stored import StoredExperts, hottest
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Sampling
from pipeline.process import die_with_parent, keep_freed_memory
from pipeline.serving import frames
from pipeline.serving.thinking import OPEN, Thinking

GATHER_SECONDS = 0.01
ADMIT_SECONDS = 0.02  # that a prompt waits for others while the engine is busy: a step with prompts costs several times
# one without, and little more for each further prompt
EXPERTS_SECONDS = 1.0  # between two messages about the experts' load
CHECKSUMS = "checksums.json"  # of a release: its digest is the release's


def release_digest(folder: Path) -> str:
    """What tells a release apart from every other: the digest of its checksums; of the files where it has none."""
    checksums = folder / CHECKSUMS
    return digest(checksums) if checksums.is_file() else checkpoint_digest(folder)


@dataclass(slots=True, eq=False)
class Update:
    """What one sample's tokens since the last message add."""

    request: int
    number: int
    thinking: str = ""
    answer: str = ""
    tokens: int = 0
    thinking_tokens: int = 0
    finish: Finish | None = None
    logprobs: list[Any] = field(default_factory=list)  # of the answer's tokens: text, its own, [text, one] for others

    def wire(self) -> list[Any]:
        return [
            *(self.request, self.number, self.thinking, self.answer),
            *(self.tokens, self.thinking_tokens, self.finish, self.logprobs),
        ]


@dataclass(slots=True, eq=False)
class Sample:
    """One sample on its way."""

    request: int
    number: int
    asked: Request
    thinking: Thinking | None  # None: plain text, nothing is told apart
    budget: int | None  # tokens of thinking
    closing: tuple[int, ...]  # tokens that close the thinking for the model
    written: list[int] = field(default_factory=list)  # kept where there is a budget: what the model goes on from
    thought: int = 0  # tokens of thinking
    logprobs: list[Any] = field(default_factory=list)  # of tokens whose text is held back
    begun: bool = False


class Worker:
    """Requests of the other side to an engine, and its pieces back."""

    def __init__(self, model: Decoder, tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]) -> None:
        longest = min(options["max_length"], model.config.max_position_embeddings)
        sparse = model.config.mixture is not None
        self._tokenizer = tokenizer
        self._engine = Engine(
            model, tokenizer, seed=0, slots=options["slots"], max_length=longest, record_experts=sparse
        )
        self._arrived: list[dict[str, Any]] = []  # requests that are not with the engine yet
        self._since = 0.0  # when the first of them came
        self._samples: dict[tuple[int, int], Sample] = {}  # by the engine's request and sample numbers
        self._own: dict[int, set[int]] = {}  # request of the other side -> the engine's
        self._due: dict[tuple[int, int], Update] = {}
        self._urgent: list[tuple[int, int]] = []
        mixture = model.config.mixture
        self._load = None if mixture is None else np.zeros((len(mixture.layers), mixture.experts), dtype=np.int64)
        self._told = self._sent = 0.0
        size = model.size()
        stored = [part for part in model.modules() if isinstance(part, StoredExperts)]
        mapped = sum(part.mapped for part in stored) / max(1, sum(part.count for part in stored))
        self.facts = {"parameters": size.total, "activated": size.activated, "max_length": longest, "mapped": mapped}

    def run(self, inbox: "queue.SimpleQueue[Any]", send: Callable[[Any], None]) -> None:
        """Until the other side is gone."""
        while self._take(inbox, send):
            step = self._engine.step()
            ends = {(done.request, done.number): done.finish for done in step.finished}
            for piece in step.pieces:
                self._piece(piece, ends.get((piece.request, piece.number)))
            if self._load is not None:
                for done in step.finished:
                    assert done.experts is not None
                    for layer, chosen in enumerate(done.experts.transpose(1, 0, 2)):
                        self._load[layer] += np.bincount(chosen.ravel(), minlength=self._load.shape[1])
            self._flush(send)

    def _take(self, inbox: "queue.SimpleQueue[Any]", send: Callable[[Any], None]) -> bool:
        """Do what has been asked since, waiting for it where there is nothing else to do."""
        while True:
            idle = not (self._engine.busy or self._arrived)
            if idle:
                self._flush(send, everything=True)
            try:
                message = inbox.get(block=idle)
            except queue.Empty:
                self._admit()
                if self._engine.busy:
                    return True
                continue
            if message is None:
                return False
            if message["do"] == "submit":
                if not self._arrived:
                    self._since = time.monotonic()
                self._arrived.append(message)
            else:
                self._cancel(message["request"])

    def _admit(self) -> None:
        """Give the engine what has arrived, if it is idle or that has waited long enough."""
        if self._arrived and (not self._engine.busy or time.monotonic() - self._since >= ADMIT_SECONDS):
            for message in self._arrived:
                self._submit(message)
            self._arrived.clear()

    # ------------------------------------------------------------ requests

    def _submit(self, message: dict[str, Any]) -> None:
        request, samples, budget = message["request"], message["samples"], message["budget"]
        prompt, sampling = message["prompt"], Sampling(**message["sampling"])
        # With a budget each sample may have to go on from a prompt of its own: none shares its request with others.
        for first, count in [(0, samples)] if budget is None else [(number, 1) for number in range(samples)]:
            identity = message["identity"] if budget is None else f"{message['identity']}\0{first}"
            asked = Request(tuple(prompt), count, sampling, identity, message["alternatives"])
            number = self._engine.submit(asked, stream=True)
            self._own.setdefault(request, set()).add(number)
            for offset in range(count):
                thinking = Thinking(message["opened"]) if message["chat"] else None
                sample = Sample(request, first + offset, asked, thinking, budget, tuple(message["closing"]))
                self._samples[number, offset] = sample
                if budget == 0:
                    self._close(number, sample)

    def _cancel(self, request: int) -> None:
        self._arrived = [message for message in self._arrived if message["request"] != request]
        for number in self._own.pop(request, ()):
            self._engine.cancel(number)
            for key in [key for key in self._samples if key[0] == number]:
                del self._samples[key]
        for due in [due for due in self._due if due[0] == request]:
            del self._due[due]
        self._urgent = [due for due in self._urgent if due[0] != request]

    def _close(self, number: int, sample: Sample) -> None:
        """End the thinking for the model: what it wrote and the closing marks are a prompt that it goes on from."""
        assert sample.thinking is not None
        self._engine.cancel(number)
        del self._samples[number, 0]
        closing = sample.closing
        if not sample.thinking.open:
            closing = (*self._tokenizer.encode(OPEN, add_special_tokens=False), *closing)
        update = self._update(sample)
        thinking, answer = sample.thinking.push(decode(self._tokenizer, list(closing)))
        update.thinking, update.answer = update.thinking + thinking, update.answer + answer
        update.tokens += len(closing)
        update.thinking_tokens += len(closing)
        asked = sample.asked
        left = asked.sampling.max_new_tokens - len(sample.written) - len(closing)
        if left < 1:
            self._finish(sample, update, number, "length")
            return
        sampling = asked.sampling.model_copy(update={"max_new_tokens": left})
        prompt = (*asked.prompt, *sample.written, *closing)
        sample.asked = Request(prompt, 1, sampling, f"{asked.identity}\0answer", asked.alternatives)
        sample.budget = None
        again = self._engine.submit(sample.asked, stream=True)
        self._own[sample.request] = self._own[sample.request] - {number} | {again}
        self._samples[again, 0] = sample

    # ------------------------------------------------------------ pieces

    def _piece(self, piece: Piece, finish: Finish | None) -> None:
        sample = self._samples[piece.request, piece.number]
        update = self._update(sample)
        update.tokens += 1
        if piece.likelihood is not None and finish != "end":
            others = [[self._text(token), value] for token, value in piece.likelihood.likeliest]
            sample.logprobs.append([self._text(piece.token), piece.likelihood.token, others])
        split = sample.thinking
        if split is None:
            update.answer += piece.text
            update.logprobs += sample.logprobs
            sample.logprobs.clear()
        else:
            thought = split.open
            thinking, answer = split.push(piece.text)
            if finish is not None:
                rest = split.end()
                thinking, answer = thinking + rest[0], answer + rest[1]
            if thought or split.open:
                sample.thought += 1
                update.thinking_tokens += 1
            update.thinking, update.answer = update.thinking + thinking, update.answer + answer
            if answer:
                update.logprobs += sample.logprobs
            if answer or not split.undecided:  # else the token may yet turn out to be of the answer
                sample.logprobs.clear()
        if not sample.begun and (update.thinking or update.answer):
            sample.begun = True
            self._urgent.append((sample.request, sample.number))
        if finish is not None:
            del self._samples[piece.request, piece.number]
            self._finish(sample, update, piece.request, finish)
        elif sample.budget is not None:
            sample.written.append(piece.token)
            if split is not None and split.open and sample.thought >= sample.budget:
                self._close(piece.request, sample)

    def _finish(self, sample: Sample, update: Update, number: int, finish: Finish) -> None:
        update.finish = finish
        self._urgent.append((sample.request, sample.number))
        if not any(key[0] == number for key in self._samples):
            self._own[sample.request].discard(number)
            if not self._own[sample.request]:
                del self._own[sample.request]

    def _update(self, sample: Sample) -> Update:
        return self._due.setdefault((sample.request, sample.number), Update(sample.request, sample.number))

    def _text(self, token: int) -> str:
        return decode(self._tokenizer, [token])

    def _flush(self, send: Callable[[Any], None], *, everything: bool = False) -> None:
        now = time.monotonic()
        everything = everything or now - self._sent >= GATHER_SECONDS
        if everything:
            due, self._due, self._sent = list(self._due.values()), {}, now
        else:
            due = [self._due.pop(key) for key in dict.fromkeys(self._urgent) if key in self._due]
        self._urgent.clear()
        if due:
            message: dict[str, Any] = {"updates": [update.wire() for update in due]}
            if self._load is not None and (now - self._told >= EXPERTS_SECONDS or not self._engine.busy):
                message["experts"], self._told = self._load.tolist(), now
            send(message)


def load(folder: Path, dtype: str, hot: float | None) -> Decoder:
    """The model as it is to answer. On a CPU packed experts stay packed, and all but the `hot` share stay in the file.

    Raises InputError where that is asked for on a GPU.
    """
    if torch.cuda.is_available():
        if hot is not None:
            raise InputError(f"machine.serving.hot: {hot}: is for CPUs, and this machine has a GPU; must be null")
        return load_model(folder, getattr(torch, dtype), "cuda")
    if dtype != "float32":
        return load_model(folder, getattr(torch, dtype))
    if hot is None:
        return load_to_answer(folder)
    return load_to_answer(folder, mapped=True, hot=hottest(folder, hot))


def serve(channel: socket.socket) -> None:
    """Load the model that the first message names, say that it is there, and answer until the other side is gone."""
    try:
        _serve(channel)
    except (BrokenPipeError, ConnectionResetError):
        return  # the other side went while something was sent to it


def _serve(channel: socket.socket) -> None:
    options = frames.receive(channel)
    if options is None:
        return
    torch.set_num_threads(options["threads"])
    folder = Path(options["folder"])
    try:
        found = release_digest(folder)
        model = load(folder, options["dtype"], options["hot"])
        worker = Worker(model, load_tokenizer(folder), options)
    except InputError as error:
        channel.sendall(frames.pack({"refused": str(error)}))
        return
    channel.sendall(frames.pack({"ready": worker.facts | {"digest": found}}))
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        while (message := frames.receive(channel)) is not None:
            inbox.put(message)
        inbox.put(None)

    threading.Thread(target=listen, daemon=True).start()
    worker.run(inbox, lambda message: channel.sendall(frames.pack(message)))


def main() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the server, which then ends this process
    keep_freed_memory()
    serve(socket.socket(fileno=int(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)  # the thread that listens may still wait
