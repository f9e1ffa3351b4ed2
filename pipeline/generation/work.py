"""What writing completions takes, counted from their lengths."""

from collections.abc import Iterable, Sequence

from pipeline.job import Work
from pipeline.model.decoder import Decoder
from pipeline.model.flops import arithmetic


def generation_work(model: Decoder, written: Iterable[tuple[int, Sequence[int]]]) -> Work:
    """Of requests: the tokens of each prompt, and those of each of its completions."""
    flops, work = arithmetic(model), Work()
    for prompt, completions in written:
        work += Work(generated_tokens=sum(completions), flops=flops.generation(prompt, completions))
    return work
