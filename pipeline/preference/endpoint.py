"""An OpenAI-compatible endpoint that is asked short questions: retries, a budget, a cache on disk.

What was answered is written down at once, by the content of the question, and never asked again: not by a run that goes
on, nor by one with other params. The same file is the account: what this work has spent, a killed attempt included.
What may pass is tried again with growing pauses: no connection, no answer in time, status 429 and 5xx, a body that is
no answer. Any other status says that the question or the key is wrong, and is the user's to mend.
The key is read from the environment, sent, and told to nobody: what an endpoint says about it is blanked out.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pipeline.errors import InputError, RunStoppedError
from pipeline.params import ExternalJudge

Messages = tuple[dict[str, str], ...]
"""A conversation: `role` and `content` of each turn."""

LONGEST_BODY = 2**20
LONGEST_PAUSE = 60.0
SHOWN = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said, and the tokens that it cost."""

    text: str
    tokens: int


class _PassingError(Exception):
    """What another attempt may mend."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause  # seconds that the endpoint asks for


class Endpoint:
    """Asks questions, several side by side."""

    def __init__(self, options: ExternalJudge, cache: Path, work: str) -> None:
        """`work` names whose budget it is: answers in `cache` that other work has paid for cost nothing.

        Raises InputError where the environment has no key under the name that `options` give.
        """
        self._options, self._work = options, work
        self._key = _read_key(options.key_variable)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(headers=headers, timeout=options.timeout_s)
        self._address = f"{options.url.rstrip('/')}/chat/completions"
        self._lock = threading.Lock()
        self._cache = cache
        self._known: dict[str, Answer] = {}
        self._calls = self._tokens = self._reserved = 0
        self._read_cache()

    @property
    def calls(self) -> int:
        """Requests that this work has sent, those without an answer included."""
        return self._calls

    @property
    def tokens(self) -> int:
        """Tokens that this work has paid for."""
        return self._tokens

    def ask(self, questions: Sequence[Messages]) -> list[str]:
        """Answers in order; equal questions are asked once.

        Raises InputError where the endpoint refuses, or does not answer in any attempt, and RunStoppedError before the
        budget would be exceeded. What was answered until then is kept.
        """
        new = {key: question for question in questions if (key := self._content(question)) not in self._known}
        with ThreadPoolExecutor(self._options.concurrency, "judge") as pool:
            asked = [pool.submit(self._answer, key, question) for key, question in new.items()]
            try:
                for future in asked:
                    future.result()
            finally:
                for future in asked:
                    future.cancel()
        return [self._known[self._content(question)].text for question in questions]

    def show(self, text: str) -> str:
        """A short text for people, without the key."""
        return " ".join((text.replace(self._key, "***") if self._key else text).split())[:SHOWN]

    def _answer(self, key: str, question: Messages) -> None:
        pause = self._options.backoff_s
        for attempt in range(1 + self._options.retries):
            worst = self._reserve(question)
            try:
                answer = self._send(question)
            except _PassingError as error:
                self._note(None, Answer("", 0), worst)
                if attempt == self._options.retries:
                    raise InputError(
                        f"general_rl.judge.url: {self._options.url}: no answer in {attempt + 1} attempts, at last: "
                        f"{self.show(str(error))}; what was answered is kept, run again when it answers"
                    ) from None
                time.sleep(min(LONGEST_PAUSE, pause if error.pause is None else error.pause))
                pause *= 2
            except BaseException:
                self._note(None, Answer("", 0), worst)
                raise
            else:
                self._note(key, answer, worst)
                return

    def _send(self, question: Messages) -> Answer:
        """One request. `timeout_s` holds for all of it, however slowly the answer drips in."""
        options, deadline = self._options, time.monotonic() + self._options.timeout_s
        content: dict[str, Any] = {"model": options.model, "messages": list(question), "temperature": 0}
        content["max_tokens"] = options.max_answer_tokens
        body = b""
        try:
            with self._client.stream("POST", self._address, json=content) as response:
                for part in response.iter_bytes():
                    body += part
                    if time.monotonic() > deadline:
                        raise _PassingError(f"no whole answer within timeout_s {options.timeout_s:g}")
                    if len(body) > LONGEST_BODY:
                        raise _PassingError(f"an answer of more than {LONGEST_BODY} bytes")
        except httpx.TransportError as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from None
        status, said = response.status_code, body.decode("utf-8", "replace")
        if status == 429 or status >= 500:
            raise _PassingError(f"status {status}: {said}", _pause(response.headers.get("retry-after", "")))
        if status != 200:
            raise InputError(f"general_rl.judge.url: {options.url}: answered with status {status}: {self.show(said)}")
        return _read_answer(said, question)

    def _reserve(self, question: Messages) -> int:
        """Room in the budget for one more request: one call, and the most tokens that it may cost."""
        options, worst = self._options, _most_tokens(question) + self._options.max_answer_tokens
        with self._lock:
            for name, needed, most in (
                ("max_calls", self._calls + 1, options.max_calls),
                ("max_tokens", self._tokens + self._reserved + worst, options.max_tokens),
            ):
                if needed > most:
                    raise RunStoppedError(
                        f"general_rl.judge.{name}: {most}: the next question may exceed it, after {self._calls} calls "
                        f"and {self._tokens} tokens. Training is kept in a checkpoint, and every answer in "
                        f"{self._cache}. To go on: raise {name}, or lower `opponents` or `preference.general`"
                    )
            self._calls += 1
            self._reserved += worst
        return worst

    def _note(self, key: str | None, answer: Answer, reserved: int) -> None:
        """Write down what a request brought; `key` is None where that is no answer."""
        entry = {"work": self._work, "key": key, "text": answer.text, "tokens": answer.tokens}
        with self._lock:
            self._reserved -= reserved
            self._tokens += answer.tokens
            if key is not None:
                self._known[key] = answer
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            with self._cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _read_cache(self) -> None:
        if not self._cache.is_file():
            return
        text = self._cache.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):  # torn by a kill: that answer is asked for again
            text = text[: text.rfind("\n") + 1]
            self._cache.write_text(text, encoding="utf-8")
        for line in text.splitlines():
            entry = json.loads(line)
            if entry["key"] is not None:
                self._known[entry["key"]] = Answer(entry["text"], entry["tokens"])
            if entry["work"] == self._work:
                self._calls += 1
                self._tokens += entry["tokens"]

    def _content(self, question: Messages) -> str:
        """Hash of all that an answer depends on."""
        asked = [self._options.url, self._options.model, self._options.max_answer_tokens, question]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not re.fullmatch(r"[!-~]+", key):  # anything else httpx would refuse, and show
        wrong = "has characters that no key has" if key else "is not set in the environment"
        raise InputError(f"general_rl.judge.key_variable: {variable}: {wrong}")
    return key


def _most_tokens(question: Messages) -> int:
    """No tokenizer makes more tokens than bytes, and a few that part the turns."""
    return sum(len(turn["content"].encode()) + 8 for turn in question)


def _read_answer(body: str, question: Messages) -> Answer:
    try:
        document: Any = json.loads(body)
        text = document["choices"][0]["message"]["content"]
        used = (document.get("usage") or {}).get("total_tokens")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _PassingError(f"no answer of a chat: {body}") from None
    if not isinstance(text, str):
        raise _PassingError(f"no text in the answer: {body}")
    counted = used if isinstance(used, int) and used >= 0 else _most_tokens(question) + len(text.encode())
    return Answer(text, counted)


def _pause(retry_after: str) -> float | None:
    return float(retry_after) if re.fullmatch(r"\d+(\.\d+)?", retry_after.strip()) else None
