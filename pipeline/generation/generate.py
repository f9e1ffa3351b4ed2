"""Whole lists of prompts through the engine, with a progress bar."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from pipeline.generation.engine import Engine
from pipeline.generation.requests import Completion, Request
from pipeline.model.cache import SlotCache
from pipeline.model.decoder import Decoder
from pipeline.params import Sampling
from pipeline.progress import Progress

SLOTS = 1024  # sequences at a time, at most: more of them share what reading the weights costs …
CACHE_BYTES = 2**30  # … as long as what they keep stays below this; 16 at least


def generate(
    model: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    samples: int,
    seed: int,
    title: str,
) -> list[list[Completion]]:
    """`samples` completions of each prompt (rendered text), in order.

    Same model, prompt, seed and options: same completions. Raises InputError where a prompt and its completion do not
    fit into the model's max_position_embeddings together.
    """
    requests = [
        Request(tuple(tokenizer.encode(prompt, add_special_tokens=False)), samples, sampling, identity=prompt)
        for prompt in prompts
    ]
    longest = max((len(request.prompt) for request in requests), default=0) + sampling.max_new_tokens
    length = min(longest, model.config.max_position_embeddings)
    room = max(16, CACHE_BYTES // SlotCache.slot_bytes(model.config, length, model.unembedding.dtype))
    slots = min(SLOTS, room, max(1, samples * len(requests)))
    engine = Engine(model, tokenizer, seed=seed, slots=slots, max_length=length)
    for request in requests:
        engine.submit(request)
    done: dict[tuple[int, int], Completion] = {}
    with Progress(title, total=samples * len(requests), unit="samples") as progress:
        for completion in engine.run():
            done[completion.request, completion.number] = completion
            progress.advance()
    return [[done[request, number] for number in range(samples)] for request in range(len(requests))]
