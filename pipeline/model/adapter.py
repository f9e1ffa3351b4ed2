"""Adapters: a model learns by changes of low rank to some of its matrices, and all its own weights are frozen.

Nothing but the changes has gradients and moments, so training takes a fraction of the memory; and the model without
them is at hand all the time, which in reinforcement learning is the reference.
Different from the textbook: a model that answers never carries an adapter. It is `Merged`: matrices of its own where
the adapter acts, the frozen weights themselves everywhere else. So the rollout engine runs at full speed, what it
samples from is what will be saved, and the frozen weights are never added to and taken from.
"""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.model.decoder import Decoder
from pipeline.model.experts import Experts
from pipeline.model.layers import Linear
from pipeline.model.low_rank import LowRank

EXPERTS = "experts"


def attach(model: Decoder, rank: int, alpha: float, targets: Collection[str], seed: int) -> None:
    """Freeze `model` and give the matrices that `targets` name (projections, as checkpoints call them) an adapter.

    `experts` stands for all matrices of the routed experts. The model computes what it did. Raises InputError for a
    name that the model does not have.
    """
    assert not is_adapted(model), "a model has one adapter"
    known = all_targets(model)
    if unknown := sorted(set(targets) - set(known)):
        raise InputError(
            f"adapter.targets: {', '.join(unknown)}: not in this {model.config.model_type} model: must be among "
            f"{', '.join(known)}"
        )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for path, module in model.layers.named_modules():
        if not set(_kinds(path, module)) <= set(targets):
            continue
        if isinstance(module, Experts):
            module.gate_up_adapter = LowRank(module.gate_up_proj, rank, alpha, generator)
            module.down_adapter = LowRank(module.down_proj, rank, alpha, generator)
        elif isinstance(module, Linear):
            module.adapter = LowRank(module.weight, rank, alpha, generator)


def all_targets(model: Decoder) -> list[str]:
    """Every name that `targets` may hold for this model."""
    return sorted({kind for path, module in model.layers.named_modules() for kind in _kinds(path, module)})


def _kinds(path: str, module: nn.Module) -> tuple[str, ...]:
    """The names of what this module is in a checkpoint, if it can be adapted."""
    name = path.rpartition(".")[2]
    if isinstance(module, Experts):
        return (EXPERTS,)
    if isinstance(module, Linear):
        return ("gate_proj", "up_proj") if name == "gate_up_proj" else (name,)
    return ()


def is_adapted(model: nn.Module) -> bool:
    return any(isinstance(module, LowRank) for module in model.modules())


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapted_weights(model: Decoder) -> Iterator[tuple[str, Tensor, LowRank]]:
    """Every matrix that is adapted: its name in memory, itself, its change."""
    for path, module in model.named_modules():
        if isinstance(module, Linear) and module.adapter is not None:
            yield f"{path}.weight", module.weight, module.adapter
        elif isinstance(module, Experts) and module.gate_up_adapter is not None and module.down_adapter is not None:
            yield f"{path}.gate_up_proj", module.gate_up_proj, module.gate_up_adapter
            yield f"{path}.down_proj", module.down_proj, module.down_adapter


class Merged:
    """The model that an adapted one is, without an adapter. Of a model that has none it is that model itself."""

    def __init__(self, model: Decoder) -> None:
        self._adapted = model
        self.decoder = self._without_adapter() if is_adapted(model) else model

    @torch.no_grad()
    def refresh(self) -> None:
        """Follow the adapter, which has learned."""
        if self.decoder is self._adapted:
            return
        weights = dict(self.decoder.named_parameters())
        for name, weight, change in adapted_weights(self._adapted):
            weights[name].copy_(change.added_to(weight))

    @torch.no_grad()
    def _without_adapter(self) -> Decoder:
        with torch.device("meta"):
            merged = Decoder(self._adapted.config)
        state: dict[str, Tensor] = self._adapted.state_dict()
        state |= {name: change.added_to(weight) for name, weight, change in adapted_weights(self._adapted)}
        merged.load_state_dict({name: state[name] for name in merged.state_dict()}, assign=True)
        return merged.requires_grad_(False).eval()
