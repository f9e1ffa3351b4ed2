"""Experts cut out of a sparse model, and with each its row of the router and its balancing bias.

What is left is a model of the same type with fewer experts: no mask, no table, nothing that a reader of checkpoints
would have to know. A token chooses among those that are left as it did before, by the same scores; so a pruned model is
the whole one whose routers never choose the experts that were cut.
DeepSeek-V3's experts stand in groups of equal size, of which a token may use a few (report section 2.1.2). The groups
stay, each smaller by the same number: a token's groups are then chosen much as before.
Shapes: E experts.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.model.decoder import Decoder
from pipeline.model.experts import Experts, MixtureOfExperts
from pipeline.model.parts import Mixture


@torch.no_grad()
def prune(model: Decoder, kept: Sequence[Tensor]) -> Decoder:
    """A copy of `model` with the `kept` experts of each mixture layer, as `most_valuable` gives them."""
    mixture = model.config.mixture
    assert mixture is not None
    assert len(kept) == len(mixture.layers)
    smaller = Decoder(replace(model.config, mixture=replace(mixture, experts=len(kept[0]))))
    smaller.to(model.unembedding.device, model.unembedding.dtype)
    cut: dict[str, Tensor] = {}  # parameters and buffers whose first dimension is that of the experts
    left = iter(kept)
    for path, part in model.named_modules():
        if isinstance(part, MixtureOfExperts):
            assert isinstance(part.experts, Experts)
            experts = next(left)
            cut |= dict.fromkeys((f"{path}.gate.{name}" for name in part.gate.state_dict()), experts)
            cut |= dict.fromkeys((f"{path}.experts.{name}" for name in part.experts.state_dict()), experts)
    whole = model.state_dict()
    smaller.load_state_dict({name: tensor[cut[name]] if name in cut else tensor for name, tensor in whole.items()})
    return smaller.eval()


def most_valuable(value: Tensor, keep: int, mixture: Mixture) -> Tensor:
    """The `keep` experts of one layer with the largest `value` (E,), equally many of each group, in rising order."""
    groups = value.unflatten(0, (mixture.groups, -1))
    best = groups.sort(dim=1, descending=True, stable=True).indices[:, : keep // mixture.groups]
    return (best + torch.arange(mixture.groups)[:, None] * groups.shape[1]).flatten().sort().values


def require_prunable(mixture: Mixture | None, keep: int, name: str) -> Mixture:
    """Raises InputError where a model cannot be left with `keep` experts a layer; `name` says whose option that is."""
    if mixture is None or not mixture.layers:
        raise InputError(f"{name}: {keep}: the model has no experts to cut")
    if not mixture.top_k <= keep <= mixture.experts:
        raise InputError(f"{name}: {keep}: must be from num_experts_per_tok = {mixture.top_k} to {mixture.experts}")
    size = keep // mixture.groups
    if (
        keep % mixture.groups
        or (mixture.scoring == "sigmoid" and size < 2)
        or size * mixture.top_groups < mixture.top_k
    ):
        raise InputError(
            f"{name}: {keep}: must leave each of the n_group = {mixture.groups} groups equally many experts, "
            f"at least 2, and a token's topk_group = {mixture.top_groups} groups at least {mixture.top_k}"
        )
    return mixture
