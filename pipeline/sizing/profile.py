"""Which experts a model really uses on a task: by layer, by router weight, by what they add, and by token.

Measured on the model's own answers to problems of the train split, prompts included: held-out problems stay unseen, as
what is cut by this profile is evaluated on them.
Four measures of an expert's worth, each a sum over the tokens that chose it, but for the last:
`choices` counts them; `weight` sums the router's weights; `contribution` sums weight times the norm of the expert's
output, which is how far it moved the residual stream; `saliency` is the mean of that instead of the sum (REAP, arXiv
2510.13999, eq. 9).
Shapes: L mixture layers, E experts, T tokens, k experts per token, K kinds of token that occur.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.errors import InputError
from pipeline.generation.generate import generate
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder
from pipeline.model.dispatch import run_experts
from pipeline.model.expert_use import runs
from pipeline.model.experts import Experts
from pipeline.params import Sampling

MEASURES = ("choices", "weight", "contribution", "saliency")
SEEN = 20
"""Tokens of one kind in the texts that say something of where that kind goes."""
NOTED = 0.02
"""Share of a kind's choices from which on an expert is named in the table of tokens."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Sums over the tokens of some texts."""

    layers: tuple[int, ...]  # the numbers of the mixture layers
    choices: Tensor  # (L, E) float64, as all of them
    weight: Tensor  # (L, E)
    contribution: Tensor  # (L, E)
    kinds: Tensor  # (K,) int64: the tokens that occur, in their order
    by_token: Tensor  # (L, K, E): choices of each of them

    def value(self, measure: str) -> Tensor:
        """What each expert is worth by one of `MEASURES`, (L, E)."""
        if measure == "saliency":
            return self.contribution / self.choices.clamp_min(1)
        value: Tensor = getattr(self, measure)
        return value

    def experts(self) -> pl.DataFrame:
        """Layer, expert, and its share of each measure in the layer: the heat map."""
        count = self.choices.shape[1]
        shares = {name: _shares(self.value(name)).flatten().numpy().round(6) for name in MEASURES[:3]}
        return pl.DataFrame(
            {"layer": np.repeat(self.layers, count), "expert": np.tile(np.arange(count), len(self.layers)), **shares}
        )

    def coverage(self) -> pl.DataFrame:
        """Layer, measure, and the share that the most used `experts` of the layer have of it."""
        parts = []
        for name in ("choices", "contribution"):
            ordered = _shares(self.value(name)).sort(dim=1, descending=True).values.cumsum(1)
            for layer, row in zip(self.layers, ordered, strict=True):
                experts = np.arange(1, len(row) + 1)
                parts.append(
                    pl.DataFrame({"experts": experts, "share": row.numpy().round(6)}).select(
                        pl.lit(layer).alias("layer"), pl.lit(name).alias("measure"), "experts", "share"
                    )
                )
        return pl.concat(parts)

    def tokens(self, tokenizer: PreTrainedTokenizerFast) -> pl.DataFrame:
        """Layer, token, expert, and the share of the token's choices that fell on the expert, largest first."""
        rows: list[tuple[Any, ...]] = []
        for layer, table in zip(self.layers, self.by_token, strict=True):
            seen = table.sum(1)
            for kind in torch.nonzero(seen >= SEEN).flatten().tolist():
                share, experts = (table[kind] / seen[kind]).sort(descending=True, stable=True)
                noted = int((share >= NOTED).sum())
                text = tokenizer.backend_tokenizer.decode([int(self.kinds[kind])], skip_special_tokens=False)
                rows += [
                    (layer, text, int(expert), round(float(part), 4))
                    for expert, part in zip(experts[:noted], share[:noted], strict=True)
                ]
        return pl.DataFrame(rows, schema=["layer", "token", "expert", "share"], orient="row")


def write_texts(
    model: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    problems: pl.DataFrame,
    count: int,
    sampling: Sampling,
    seed: int,
) -> list[list[int]]:
    """The model's answers to the first `count` problems of the train split by id, behind their prompts, as tokens."""
    asked = problems.filter(pl.col("split") == "train").sort("id").head(count)
    if asked.is_empty():
        raise InputError("deployment.sizing: the curated data has no problem in its train split")
    prompts = [chat.render_prompt(prompt, bos=tokenizer.bos_token or "") for prompt in asked["prompt"]]
    answers = generate(model, tokenizer, prompts, sampling, samples=1, seed=seed, title="deployment: profile")
    return [
        [*tokenizer.encode(prompt, add_special_tokens=False), *answer[0].tokens.tolist()]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


@torch.inference_mode()
def profile(model: Decoder, texts: Sequence[Sequence[int]]) -> Profile:
    """What the experts of a sparse `model` do on these token sequences."""
    mixture = model.config.mixture
    assert mixture is not None
    shape = len(mixture.layers), mixture.experts
    choices, weight, contribution = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    kinds = torch.tensor(sorted({token for text in texts for token in text}))
    by_token = torch.zeros(shape[0], len(kinds), shape[1], dtype=torch.float64)
    noted: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(part: Experts, given: tuple[Tensor, ...], _: Tensor) -> None:
        x, experts, weights, _base = given
        nothing, whole = torch.zeros_like(x), torch.ones_like(weights[:, :1])
        alone = [run_experts(x, part.gate_up_proj, part.down_proj, one, whole, nothing) for one in experts.split(1, 1)]
        noted.append((experts, weights, torch.stack([out.norm(dim=1) for out in alone], 1)))

    hooks = [part.register_forward_hook(note) for part in model.modules() if isinstance(part, Experts)]
    try:
        for run in runs(texts):
            lengths = [len(text) for text in run]
            tokens = torch.tensor([token for text in run for token in text])
            noted.clear()
            model(tokens, torch.cat([torch.arange(length) for length in lengths]), PackedSequences(lengths))
            for layer, (experts, weights, norms) in enumerate(noted):
                flat, weights = experts.flatten(), weights.double()
                choices[layer] += torch.bincount(flat, minlength=shape[1])
                weight[layer] += torch.bincount(flat, weights.flatten(), minlength=shape[1])
                contribution[layer] += torch.bincount(flat, (weights * norms).flatten(), minlength=shape[1])
                pairs = (torch.searchsorted(kinds, tokens)[:, None] * shape[1] + experts).flatten()
                by_token[layer] += torch.bincount(pairs, minlength=by_token[layer].numel()).view(by_token[layer].shape)
    finally:
        for hook in hooks:
            hook.remove()
    return Profile(mixture.layers, choices, weight, contribution, kinds, by_token)


def _shares(values: Tensor) -> Tensor:
    return values / values.sum(1, keepdim=True)
