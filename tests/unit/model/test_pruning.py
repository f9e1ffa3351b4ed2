"""Experts cut out of a model against the whole model that never chooses them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.errors import InputError
from pipeline.model.attention import PackedSequences
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.decoder import Decoder
from pipeline.model.experts import MixtureOfExperts
from pipeline.model.pruning import most_valuable, prune, require_prunable

from .reference import decoder

LENGTHS = [17, 5, 30]
CASES = ["deepseek-plain", "deepseek-query-latent-groups", "qwen3-moe"]


@torch.no_grad()
def logits(model: Decoder) -> Tensor:
    tokens = torch.randint(0, 61, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return model.logits(model(tokens, positions, PackedSequences(LENGTHS)).hidden)


def chosen(model: Decoder, keep: int, seed: int = 4) -> list[Tensor]:
    mixture = require_prunable(model.config.mixture, keep, "keep")
    generator = torch.Generator().manual_seed(seed)
    values = [torch.rand(mixture.experts, generator=generator) for _ in mixture.layers]
    return [most_valuable(value, keep, mixture) for value in values]


def unsettled(case: str) -> Decoder:
    """With a balancing bias that matters."""
    model = decoder(case)
    for bias in model.buffers():
        bias.copy_(0.1 * torch.randn(bias.shape, generator=torch.Generator().manual_seed(9)))
    return model


@pytest.mark.parametrize("case", CASES)
def test_keeping_all_changes_nothing(case: str) -> None:
    model = unsettled(case)
    mixture = model.config.mixture
    assert mixture is not None
    pruned = prune(model, chosen(model, mixture.experts))
    assert torch.equal(logits(pruned), logits(model))


@pytest.mark.parametrize("case", ["deepseek-plain", "deepseek-query-latent-groups"])
def test_a_pruned_model_is_the_whole_one_that_never_chooses_what_was_cut(case: str) -> None:
    model = unsettled(case)
    kept = chosen(model, 8)
    pruned = prune(model, kept)
    assert pruned.size().total < model.size().total
    assert pruned.size().activated == model.size().activated - 2 * 8 * 32  # the routers' rows
    layers = [part for part in model.modules() if isinstance(part, MixtureOfExperts)]
    for layer, left in zip(layers, kept, strict=True):
        never = torch.ones(16, dtype=torch.bool)
        never[left] = False
        layer.gate.e_score_correction_bias[never] = -1e6
    torch.testing.assert_close(logits(pruned), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_it_with_equal_logits(case: str, tmp_path: Path) -> None:
    model = unsettled(case)
    keep = 8 if case.startswith("deepseek") else 5
    pruned = prune(model, chosen(model, keep))
    save_model(pruned, tmp_path / "pruned")
    assert torch.equal(logits(load_model(tmp_path / "pruned")), logits(pruned))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.float32).eval()
    ours = logits(pruned)
    tokens = torch.randint(0, 61, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
    for own, part in zip(ours.split(LENGTHS), tokens.split(LENGTHS), strict=True):
        with torch.no_grad():
            found = theirs(input_ids=part[None]).logits[0]
        torch.testing.assert_close(own, found, atol=1e-4, rtol=1e-4)


def test_the_best_of_each_group_are_kept() -> None:
    mixture = decoder("deepseek-query-latent-groups").config.mixture
    assert mixture is not None
    value = torch.tensor([4.0, 3, 2, 1, 9, 9, 9, 8, 0, 0, 0, 0, 5, 6, 7, 8])
    assert most_valuable(value, 8, mixture).tolist() == [0, 1, 4, 5, 8, 9, 14, 15]


@pytest.mark.parametrize(
    ("case", "keep", "rule"),
    [
        ("deepseek-query-latent-groups", 10, "each of the n_group = 4 groups equally many"),
        ("deepseek-query-latent-groups", 4, "at least 2"),
        ("deepseek-plain", 2, "from num_experts_per_tok = 3 to 16"),
        ("deepseek-plain", 17, "from num_experts_per_tok = 3 to 16"),
        ("llama-grouped", 4, "no experts to cut"),
    ],
)
def test_what_cannot_be_left_is_refused(case: str, keep: int, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        require_prunable(decoder(case).config.mixture, keep, "deployment.variants.x.experts")
