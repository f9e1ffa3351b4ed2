"""Speed of generation: groups of completions of short sums, sampled at temperature 1 as a GRPO step samples them.

Prompts are those that a peer's GRPO trainer was measured with, so that the two figures can be set side by side.
"""

import random
import resource
import statistics
import time
from pathlib import Path

import torch

from pipeline.generation.engine import Engine
from pipeline.generation.requests import Completion, Request
from pipeline.model.checkpoint import load_model
from pipeline.model.device import stage_device
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Sampling

ROLLOUTS = 3  # measured, after one that is not


def sums(count: int) -> list[str]:
    """The first `count` prompts, always the same: `47+85+12=?`."""
    rng = random.Random(0)
    return ["+".join(str(rng.randint(10, 99)) for _ in range(3)) + "=?" for _ in range(count)]


def run(model: Path, prompts: int, group: int, new_tokens: int, dtype: str) -> dict[str, float | int | str]:
    """Complete `prompts` sums `group` times each with the checkpoint in `model`, all at once.

    `seconds` is the median of a few such rollouts, with prompts of its own each; the rates are of that rollout;
    `peak_rss_mib` is the whole process's.
    """
    decoder, tokenizer = load_model(model, getattr(torch, dtype), stage_device()), load_tokenizer(model)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=new_tokens)
    texts = sums(prompts * (ROLLOUTS + 1))
    requests = [
        Request(tuple(tokenizer.encode(text, add_special_tokens=False)), group, sampling, text) for text in texts
    ]
    length = max(len(request.prompt) for request in requests) + new_tokens
    engine = Engine(decoder, tokenizer, seed=0, slots=prompts * group, max_length=length)
    rollouts = [_timed(engine, requests[at : at + prompts]) for at in range(0, len(requests), prompts)][1:]
    seconds = statistics.median_low([took for took, _ in rollouts])
    completions = next(done for took, done in rollouts if took == seconds)
    return {
        "dtype": dtype,
        "batch": prompts * group,
        "new_tokens": new_tokens,
        "seconds": round(seconds, 6),
        "completion_tokens_per_s": round(sum(len(c.tokens) for c in completions) / seconds, 1),
        "samples_per_s": round(len(completions) / seconds, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _timed(engine: Engine, requests: list[Request]) -> tuple[float, list[Completion]]:
    start = time.perf_counter()
    for request in requests:
        engine.submit(request)
    completions = list(engine.run())
    return time.perf_counter() - start, completions
