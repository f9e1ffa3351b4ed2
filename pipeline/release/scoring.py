"""What a model thinks of given answers: by our own forward, and by transformers' of the same files.

Shapes: P answer tokens of all texts in a row, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline.job import Work
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder
from pipeline.model.flops import arithmetic
from pipeline.training.batches import runs
from pipeline.training.loss import token_log_probabilities

RUN_TOKENS = 4096  # scored side by side


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion as tokens behind its prompt. Lists of them are sorted by the length of the whole."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tokens)


def encode(tokenizer: PreTrainedTokenizerFast, prompt: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(prompt, add_special_tokens=False))


@torch.inference_mode()
def score(model: Decoder, answers: Sequence[Answer], temperature: float) -> Tensor:
    """Log-probability (P,) of every token of the answers, in order, under our own forward at `temperature`."""
    scores = []
    for part in runs(answers, RUN_TOKENS):
        tokens = torch.tensor([token for one in part for token in (*one.prompt, *one.tokens)])
        lengths = [len(one) for one in part]
        positions = torch.cat([torch.arange(length) for length in lengths])
        hidden = model(tokens, positions, PackedSequences(lengths)).hidden
        ends = torch.tensor(lengths).cumsum(0).tolist()
        places = [range(end - len(one.tokens), end) for end, one in zip(ends, part, strict=True)]
        targets = torch.tensor([place for several in places for place in several])
        scored, _ = token_log_probabilities(hidden, model.unembedding, targets - 1, tokens[targets], temperature)
        scores.append(scored)
    return torch.cat(scores)


@torch.inference_mode()
def score_by_transformers(folder: Path, answers: Sequence[Answer], temperature: float) -> Tensor:
    """The same by transformers' own model of these files, in float32 as ours."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    scores = []
    for part in runs(answers, RUN_TOKENS):
        longest = max(len(one) for one in part)
        # Behind a text nothing looks back at it, so what stands there does not matter.
        rows = torch.tensor([[*one.prompt, *one.tokens, *([0] * (longest - len(one)))] for one in part])
        logits = model(input_ids=rows, use_cache=False).logits
        for row, tokens, one in zip(logits, rows, part, strict=True):
            start, end = len(one.prompt), len(one)
            chances = (row[start - 1 : end - 1].float() / temperature).log_softmax(-1)
            scores.append(chances.gather(1, tokens[start:end, None]).squeeze(1))
    return torch.cat(scores)


def scoring_work(model: Decoder, answers: Sequence[Answer], models: int) -> Work:
    """Of so many models that read the answers; what is read only counts as operations, not as tokens."""
    lengths, predictions = [len(one) for one in answers], sum(len(one.tokens) for one in answers)
    return Work(flops=models * arithmetic(model).forward(lengths, predictions))
