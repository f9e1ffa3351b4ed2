"""Put one question to a model of this project, or to the server that runs for it."""

import json
import os
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from pipeline import chat
from pipeline.errors import InputError
from pipeline.evaluation.models import ORDER, STUDENTS
from pipeline.params import Params
from pipeline.process import importing
from pipeline.running import Running, find_server

KEYS_VARIABLE = "R1FLOW_API_KEYS"
FAILURES = (OSError, HTTPException, ValueError)  # of a connection that breaks, of an answer that is cut off or no JSON


def answer(question: str, root: Path, params: Params, model: Path | None) -> tuple[chat.Completion, str]:
    """The completion and who wrote it: the model at `model`, else the one that is served, else the recipe's last.

    Raises InputError for an empty question, and for one that holds a marker of the chat template.
    """
    if not question.strip():
        raise InputError(f"{question!r}: must be a question")
    if model is None and (server := find_server(root)) is not None:
        return ask_server(question, server, params), f"{server.model} at {server.address}"
    folder = model or last_model(root)
    return ask(question, folder, params), str(folder.relative_to(root) if folder.is_relative_to(root) else folder)


def ask_server(question: str, server: Running, params: Params) -> chat.Completion:
    """The same over HTTP, past any proxy. Raises InputError with what the server says where it refuses."""
    options = params.evaluation.sampling
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": question}],
        "seed": params.seed,
        "temperature": options.temperature,
        **({"top_p": options.top_p} if options.temperature else {}),
    }
    headers = {"Content-Type": "application/json"}
    if keys := os.environ.get(KEYS_VARIABLE):
        headers["Authorization"] = f"Bearer {keys.split(',')[0].strip()}"
    request = urllib.request.Request(f"{server.address}/v1/chat/completions", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=params.machine.serving.request_seconds) as response:
            [choice] = json.load(response)["choices"]
    except urllib.error.HTTPError as error:
        hint = f"; its key is taken from {KEYS_VARIABLE}" if error.code == 401 else ""
        raise InputError(f"{server.address}: {_said(error)}{hint}") from error
    except FAILURES as error:
        raise InputError(f"{server.address}: the server of this project does not answer: {error}") from error
    message = choice["message"]
    whole = choice["finish_reason"] == "stop" and bool(message["content"])
    return chat.Completion(message["reasoning"] or "", message["content"], well_formed=whole)


def _said(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong; the status alone where it says that otherwise than OpenAI's servers do."""
    with suppress(*FAILURES, KeyError, TypeError):
        return str(json.load(error)["error"]["message"])
    return f"{error.code} {error.reason}"


def ask(question: str, folder: Path, params: Params) -> chat.Completion:
    """The model's completion, sampled as the evaluation does."""
    if any(marker in question for marker in chat.MARKERS):
        raise InputError(f"{question!r}: must not contain any of {' '.join(chat.MARKERS)}")
    with importing():
        from pipeline.generation.generate import generate
        from pipeline.model.checkpoint import load_model
        from pipeline.model.tokenizer import load_tokenizer

    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompt = chat.render_prompt(question)
    options = params.evaluation.sampling
    [[sample]] = generate(model, tokenizer, [prompt], options, samples=1, seed=params.seed, title="thinking")
    return chat.parse_completion(sample.text)


def last_model(root: Path) -> Path:
    """The folder of the last model that the recipe has made. Raises InputError where there is none."""
    folders = [root / "artifacts" / stage / "model" for stage in ORDER if stage != STUDENTS]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise InputError(f"{root / 'artifacts'}: no model yet; make one with `r1flow run`, or name one with --model")
