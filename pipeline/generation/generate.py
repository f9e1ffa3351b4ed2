"""Whole lists of prompts through the engine, with a progress bar."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from pipeline.generation.engine import Engine
from pipeline.generation.requests import Completion, Request
from pipeline.model.decoder import Decoder
from pipeline.params import Sampling
from pipeline.progress import Progress

SLOTS = 256  # sequences at a time


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
    engine = Engine(
        model,
        tokenizer,
        seed=seed,
        slots=min(SLOTS, max(1, samples * len(requests))),
        max_length=min(longest, model.config.max_position_embeddings),
    )
    for request in requests:
        engine.submit(request)
    done: dict[tuple[int, int], Completion] = {}
    with Progress(title, total=samples * len(requests), unit="samples") as progress:
        for completion in engine.run():
            done[completion.request, completion.number] = completion
            progress.advance()
    return [[done[request, number] for number in range(samples)] for request in range(len(requests))]
