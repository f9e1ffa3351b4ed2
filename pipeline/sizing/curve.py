"""What is lost when experts are cut, by how many are left and by what they were chosen.

`divergence` is KL(whole ‖ pruned) in nats per token, over the whole vocabulary, on the whole model's own texts: cheap,
and exact where accuracy on some hundred problems is mostly chance. pass@1 on held-out problems is measured for the
criterion that the variants are cut by. Nothing is trained after the cut here: what training wins back, a variant shows.
"""

from collections.abc import Callable, Sequence

import polars as pl
import torch
from torch import Tensor

from pipeline.evaluation.intervals import Interval
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder
from pipeline.model.expert_use import runs
from pipeline.model.parts import Mixture
from pipeline.model.pruning import most_valuable, prune
from pipeline.sizing.profile import MEASURES, Profile

CRITERION = "contribution"
"""By which experts are kept; docs/right-sizing.md has the comparison."""
COMPARED_TOKENS = 6_000  # about, of the texts
ROWS = 512  # tokens whose logits are compared at once


def keep(profile: Profile, count: int, mixture: Mixture, measure: str = CRITERION) -> list[Tensor]:
    """The `count` most valuable experts of each layer."""
    return [most_valuable(value, count, mixture) for value in profile.value(measure)]


def pruning_curve(
    model: Decoder,
    profile: Profile,
    texts: Sequence[Sequence[int]],
    shares: Sequence[float],
    accuracy: Callable[[Decoder], Interval],
) -> pl.DataFrame:
    """Experts left, criterion, divergence, pass@1 with its interval (of one criterion); all experts come first."""
    mixture = model.config.mixture
    assert mixture is not None
    compared = _first(texts, COMPARED_TOKENS)
    reference = _hidden(model, compared)
    known = accuracy(model)
    rows: list[tuple[object, ...]] = [(mixture.experts, CRITERION, 0.0, known.mean, known.low, known.high)]
    for count in sorted({_possible(share, mixture) for share in shares} - {mixture.experts}, reverse=True):
        for measure in MEASURES:
            pruned = prune(model, keep(profile, count, mixture, measure))
            divergence = _divergence(model, reference, pruned, _hidden(pruned, compared))
            found = accuracy(pruned) if measure == CRITERION else None
            bounds = (None, None, None) if found is None else (found.mean, found.low, found.high)
            rows.append((count, measure, round(divergence, 5), *bounds))
    columns = ["experts", "criterion", "divergence", "pass_at_1", "low", "high"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def _possible(share: float, mixture: Mixture) -> int:
    """The nearest number of experts that the groups allow."""
    least = max(2, -(-mixture.top_k // mixture.top_groups))
    size = mixture.experts // mixture.groups
    return mixture.groups * min(size, max(least, round(share * size)))


def _first(texts: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    chosen: list[Sequence[int]] = []
    for text in texts:
        if sum(map(len, chosen)) >= tokens:
            break
        chosen.append(text)
    return chosen


@torch.inference_mode()
def _hidden(model: Decoder, texts: Sequence[Sequence[int]]) -> Tensor:
    """(T, D) after every token of the texts."""
    parts = []
    for run in runs(texts):
        lengths = [len(text) for text in run]
        tokens = torch.tensor([token for text in run for token in text])
        positions = torch.cat([torch.arange(length) for length in lengths])
        parts.append(model(tokens, positions, PackedSequences(lengths)).hidden)
    return torch.cat(parts)


@torch.inference_mode()
def _divergence(model: Decoder, hidden: Tensor, other: Decoder, others: Tensor) -> float:
    """The mean of KL(model ‖ other) over the tokens, some at a time: their logits are many."""
    parts = []
    for own, theirs in zip(hidden.split(ROWS), others.split(ROWS), strict=True):
        reference, left = model.logits(own).log_softmax(-1), other.logits(theirs).log_softmax(-1)
        parts.append((reference.exp() * (reference - left)).sum(-1))
    return float(torch.cat(parts).mean())
