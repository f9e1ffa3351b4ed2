"""From texts and conversations to training examples: token ids, and which of them count in the loss."""

from collections.abc import Iterable

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.errors import InputError
from pipeline.training.batches import Example


def text_examples(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], room: int) -> list[Example]:
    """Pre-training: every token of a text is predicted.

    Raises InputError for a text of more tokens than `room`, the model's max_position_embeddings.
    """
    encoded = _encode(tokenizer, list(texts))
    for number, tokens in enumerate(encoded, 1):
        if len(tokens) > room:
            raise InputError(
                f"text {number} of the corpus has {len(tokens)} tokens: must be at most the model's "
                f"max_position_embeddings = {room}; of curated problems curation.limits bounds the length"
            )
    return [Example(tokens, np.ones(len(tokens), dtype=bool)) for tokens in encoded]


def worked_examples(
    tokenizer: PreTrainedTokenizerFast, problems: pl.DataFrame, traces: pl.DataFrame, room: int
) -> list[Example]:
    """Supervised fine-tuning: the model predicts thinking and answer, the prompt is given.

    `problems` and `traces` are tables of records; every trace must have its problem. The order is that of `traces`.
    Raises InputError for an example of more tokens than `room`, the model's max_position_embeddings.
    """
    worked = traces.join(problems, left_on="problem_id", right_on="id", how="left", maintain_order="left")
    assert worked["prompt"].null_count() == 0, "curation lets no trace pass without its problem"
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token
    prompts = [chat.render_prompt(prompt, bos=bos) for prompt in worked["prompt"]]
    completions = [
        chat.render_completion(thinking, answer, eos=eos)
        for thinking, answer in worked.select("thinking", "answer").iter_rows()
    ]
    examples = []
    encoded = zip(_encode(tokenizer, prompts), _encode(tokenizer, completions), strict=True)
    for problem, (prompt, completion) in zip(worked["problem_id"], encoded, strict=True):
        if (length := len(prompt) + len(completion)) > room:
            raise InputError(
                f"a trace of problem {problem} has {length} tokens with its prompt: must be at most the model's "
                f"max_position_embeddings = {room}; curation.limits and selection bound what is long"
            )
        counts = np.zeros(length, dtype=bool)
        counts[len(prompt) :] = True
        examples.append(Example(np.concatenate([prompt, completion]), counts))
    return examples


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]
