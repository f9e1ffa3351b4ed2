"""What writing completions takes, counted from their lengths."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from pipeline.job import Work
from pipeline.model.decoder import Decoder
from pipeline.model.flops import arithmetic


def generation_work(
    model: Decoder, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], lengths: Sequence[Sequence[int]]
) -> Work:
    """Of prompts (rendered text), each read once, and completions of so many tokens each."""
    flops, work = arithmetic(model), Work()
    for prompt, written in zip(prompts, lengths, strict=True):
        read = len(tokenizer.encode(prompt, add_special_tokens=False))
        work += Work(generated_tokens=sum(written), flops=flops.generation(read, written))
    return work
