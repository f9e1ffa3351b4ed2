"""From logits to the next token of each sequence.

Shapes: B sequences, V vocabulary.
Different from the textbook: each sequence has options of its own, and its random number comes from outside. top-p,
top-k and min-p all look at the same distribution, that of the sampling temperature; a token must pass each of them.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from pipeline.model import native

COLDEST = 1e-6  # temperature; below it is as 0: the likeliest token is all but certain, and logits / 1e-38 are infinite


@dataclass(frozen=True)
class Options:
    """How each of B sequences is sampled, as tensors (B,) of float64; see `pipeline.params.Sampling`."""

    temperature: Tensor  # 0, as all below COLDEST, takes the likeliest token
    top_p: Tensor
    top_k: Tensor  # infinite where all tokens may be chosen
    min_p: Tensor

    @classmethod
    def of(cls, columns: Tensor) -> Self:
        """From columns (4, B) in the order of the fields."""
        return cls(*columns)

    def rows(self, chosen: Tensor) -> Self:
        return replace(self, **{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def sample(logits: Tensor, uniform: Tensor, options: Options, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Next tokens (B,) from logits (B, V) by inverting the cumulative distribution at `uniform` (B,) float64.

    `cut` (B,) bool, on the CPU, says which sequences have a top-p, top-k or min-p; for the others nothing is sorted,
    whatever their company. Also returns the tokens' log-probabilities (B,) float32 at the sampling temperature, before
    any cut.
    """
    if cut.all() or not cut.any():
        return _sample(logits, uniform, options, cut=bool(cut.any()))
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    log_probabilities = torch.empty(len(logits), device=logits.device)
    for kind in (True, False):
        rows = (cut == kind).nonzero().squeeze(1).to(logits.device)
        drawn = _sample(logits[rows], uniform[rows], options.rows(rows), cut=kind)
        tokens[rows], log_probabilities[rows] = drawn
    return tokens, log_probabilities


def _sample(logits: Tensor, uniform: Tensor, options: Options, *, cut: bool) -> tuple[Tensor, Tensor]:
    """The same where all sequences are cut, or none is."""
    greedy = options.temperature < COLDEST
    temperature = torch.where(greedy, 0.0, options.temperature)
    if not cut and native.usable(logits):
        logits, tokens = logits.contiguous(), torch.empty(len(logits), dtype=torch.int64)
        log_probabilities = torch.empty(len(logits))
        given = (logits, uniform.contiguous(), temperature.contiguous())
        native.call("draw", *logits.shape, *given, tokens, log_probabilities)
        return tokens, log_probabilities
    temperature = torch.where(greedy, 1.0, temperature).float()
    log_probabilities = (logits.float() / temperature[:, None]).log_softmax(-1)
    # Sums over a vocabulary in float64: in float32 their last bits would move tokens near a boundary.
    probabilities = log_probabilities.double().exp()
    drawn = _draw_cut(probabilities, uniform, options) if cut else _draw(probabilities, uniform)
    tokens = torch.where(greedy, logits.argmax(-1), drawn)
    return tokens, log_probabilities.gather(1, tokens[:, None]).squeeze(1)


def _draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds `uniform` of the whole, (B,)."""
    cumulative = probabilities.cumsum(-1)
    place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    # Where rounding makes the target equal the whole mass, the last token that has any.
    last = (cumulative < cumulative[:, -1:]).sum(-1)
    return place.minimum(last)


def _draw_cut(probabilities: Tensor, uniform: Tensor, options: Options) -> Tensor:
    """The same among the tokens that pass top-p, top-k and min-p, likeliest first.

    top-p keeps the smallest set of likeliest tokens whose mass reaches it (nucleus sampling, arXiv 1904.09751), min-p
    those at least that share of the likeliest one's probability (arXiv 2407.01082). The likeliest token always passes.
    """
    ordered, tokens = probabilities.sort(stable=True, descending=True)
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    passes = ordered.cumsum(-1) - ordered < options.top_p[:, None]
    passes &= rank < options.top_k[:, None]
    passes &= ordered >= options.min_p[:, None] * ordered[:, :1]
    return tokens.gather(1, _draw(ordered * passes, uniform)[:, None]).squeeze(1)
