"""The load under which a release is measured: clients who send the next question when the last one is answered.

They meet the engine itself; what HTTP adds comes on top.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import chat
from pipeline.gauges import device, peak_memory
from pipeline.generation.engine import Engine
from pipeline.generation.requests import Completion, Request
from pipeline.model.checkpoint import load_to_answer
from pipeline.model.stored import hottest
from pipeline.model.tokenizer import load_tokenizer
from pipeline.planning.measure import CLIENTS, SLOWEST, Load, Measured, Question, Way
from pipeline.rewards.answer import verify

SAMPLE_SECONDS = 0.01  # between two looks at the memory


def measure_here(folder: Path, way: Way, load: Load) -> Measured:
    """In this process, which ought to be a new one."""
    with _peak_of_own_memory() as peak:
        before = peak[0]
        mapped = way == "offload"
        model = load_to_answer(folder, mapped=mapped, hot=hottest(folder, load.hot) if mapped else ())
        tokenizer = load_tokenizer(folder)
        prompts = [chat.render_prompt(question.prompt, bos=tokenizer.bos_token or "") for question in load.questions]
        requests = [
            Request(tuple(tokenizer.encode(prompt, add_special_tokens=False)), 1, load.sampling, prompt)
            for prompt in prompts
        ]
        longest = max(len(request.prompt) for request in requests) + load.sampling.max_new_tokens
        engine = Engine(model, tokenizer, seed=load.seed, slots=CLIENTS, max_length=longest)
        _serve(engine, requests[:1], 1)  # what happens once: kernels are loaded, memory is made
        many, alone = _serve(engine, requests, CLIENTS), _serve(engine, requests[: load.alone], 1)
    used = device()
    return Measured(
        right=tuple(
            _is_right(question, completion) for question, completion in zip(load.questions, many.answers, strict=True)
        ),
        speed=many.speed,
        speed_alone=alone.speed,
        first_token=_slowest(many.first_tokens),
        latency=_slowest(many.latencies),
        memory=peak[0],
        before=before,
        resident=peak_memory(),
        device=used.name,
        device_kind=used.kind,
    )


@dataclass(frozen=True, slots=True)
class _Served:
    answers: list[Completion]  # in the order of the requests
    speed: float
    first_tokens: list[float]
    latencies: list[float]


def _serve(engine: Engine, requests: Sequence[Request], clients: int) -> _Served:
    """Keep `clients` requests under way until all are answered."""
    waiting, begun = deque(enumerate(requests)), dict[int, tuple[int, float]]()
    answers: dict[int, Completion] = {}
    first_tokens: dict[int, float] = {}
    latencies: list[float] = []
    start = time.perf_counter()
    while waiting or begun:
        while waiting and len(begun) < clients:
            place, request = waiting.popleft()
            begun[engine.submit(request, stream=True)] = place, time.perf_counter()
        step, now = engine.step(), time.perf_counter()
        for piece in step.pieces:
            first_tokens.setdefault(piece.request, now - begun[piece.request][1])
        for completion in step.finished:
            place, since = begun.pop(completion.request)
            answers[place] = completion
            latencies.append(now - since)
    tokens = sum(len(completion.tokens) for completion in answers.values())
    speed = tokens / (time.perf_counter() - start)
    return _Served([answers[place] for place in range(len(requests))], speed, list(first_tokens.values()), latencies)


def _is_right(question: Question, completion: Completion) -> bool:
    answer = chat.parse_completion(completion.text).answer
    return verify(answer, question.gold, question.verifier).verdict == "right"


def _slowest(seconds: Sequence[float]) -> float:
    return float(np.quantile(seconds, SLOWEST, method="inverted_cdf"))


@contextmanager
def _peak_of_own_memory() -> Iterator[list[int]]:
    """A list of one number that follows the most bytes this process has had to itself."""
    peak, done = [own_memory()], threading.Event()

    def look() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], own_memory())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = max(peak[0], own_memory())


def own_memory() -> int:
    """Bytes of memory that is nobody else's and no file's; where the system does not tell, all that was ever held."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return peak_memory()
    kept = dict(line.split(":", 1) for line in status.splitlines())
    return sum(int(kept[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem") if name in kept)
