"""Plain batched generation: prefill a batch of prompts, then one token per unfinished sequence at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from pipeline.generation.sampler import choose, randomness
from pipeline.model.attention import KeyValueCache
from pipeline.model.decoder import Decoder
from pipeline.params import Sampling
from pipeline.progress import Progress

BATCH = 256  # sequences at a time


@dataclass(frozen=True, slots=True)
class Generated:
    """A completion: its text without the end token, its length in tokens, and whether it ended by itself."""

    text: str
    tokens: int
    finished: bool


def generate(
    model: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    options: Sampling,
    *,
    samples: int,
    seed: int,
    title: str,
) -> list[list[Generated]]:
    """`samples` completions of each prompt (rendered text). Same model, prompt, seed and options: same completions."""
    requests = [(prompt, number) for prompt in prompts for number in range(samples)]
    # Prompts of similar length side by side: their completions tend to end together.
    order = sorted(range(len(requests)), key=lambda index: len(requests[index][0]))
    done: dict[int, Generated] = {}
    with Progress(title, total=len(requests), unit="samples") as progress, torch.inference_mode():
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            completions = _generate_batch(model, tokenizer, [requests[index] for index in batch], options, seed)
            done.update(zip(batch, completions, strict=True))
            progress.advance(len(batch))
    return [[done[row * samples + number] for number in range(samples)] for row in range(len(prompts))]


def _generate_batch(
    model: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    requests: list[tuple[str, int]],
    options: Sampling,
    seed: int,
) -> list[Generated]:
    device = next(model.parameters()).device
    ids = [tokenizer.encode(prompt, add_special_tokens=False) for prompt, _ in requests]
    lengths = [len(tokens) for tokens in ids]
    limit = options.max_new_tokens
    uniform = torch.stack([randomness(seed, prompt, number, limit) for prompt, number in requests]).to(device)
    cache = KeyValueCache(model.config, len(ids), max(lengths) + limit, torch.float32, device)

    flat = torch.tensor([token for tokens in ids for token in tokens], device=device)
    hidden = model(flat, cache.prefill(lengths), cache).hidden
    last = torch.tensor(lengths, device=device).cumsum(0) - 1
    chosen = choose(model.logits(hidden[last]), uniform[:, 0], options)
    written = torch.full((len(ids), limit), tokenizer.eos_token_id, device=device)
    written[:, 0] = chosen
    live = torch.arange(len(ids), device=device)
    for step in range(1, limit):
        live = live[written[live, step - 1] != tokenizer.eos_token_id]
        if not len(live):
            break
        hidden = model(written[live, step - 1], cache.extend(live), cache).hidden
        written[live, step] = choose(model.logits(hidden), uniform[live, step], options)
    return [_take_apart(row, tokenizer) for row in written.tolist()]


def _take_apart(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> Generated:
    """Cut a row of tokens at the end token. The end token counts as one of the completion's tokens."""
    finished = tokenizer.eos_token_id in tokens
    length = tokens.index(tokenizer.eos_token_id) if finished else len(tokens)
    return Generated(
        tokenizer.backend_tokenizer.decode(tokens[:length], skip_special_tokens=False), length + finished, finished
    )
