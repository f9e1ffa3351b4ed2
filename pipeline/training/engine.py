"""What carries out a step: forward, backward, update. One process with plain torch here.

The loop speaks to an `Engine` alone, so an engine that spreads parameters over many processes can take its place. For
that, the whole forward pass up to the loss is one module: such an engine gathers parameters around its call.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.model.adapter import is_adapted
from pipeline.model.decoder import Decoder
from pipeline.params import Distributed, Optimisation
from pipeline.training.optimiser import adamw, gradient_norm
from pipeline.world import world

State = Mapping[str, Mapping[str, Tensor]]
"""Everything that the next step depends on: part → name → tensor. Of several ranks each has its share, in pieces."""


Permit = Callable[[float], bool]
"""Asked with the gradients' norm, finite or not, while the weights are still as they were: may they change?"""


def always(norm: float) -> bool:
    return True


class Engine(Protocol):
    def __call__(self, *inputs: Any) -> Any:
        """Run the module in the engine's dtype."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add this loss's gradients to those of the step."""
        ...

    def step(self, learning_rate: float, permit: Permit = always) -> float:
        """Update the weights, forget the gradients, return the gradients' norm before clipping.

        Nothing is updated where the norm is not finite, with which the caller has to deal, or where `permit` says no.
        """
        ...

    def state(self) -> State:
        """The state itself, not a copy."""
        ...

    def load_state(self, state: State) -> None:
        """Go on from a whole state, whichever engine's it was."""
        ...

    def copy(self, source: nn.Module, target: nn.Module) -> None:
        """The weights and buffers of a part of the module into another one like it, which is whole."""
        ...

    def finish(self, scratch: Path) -> None:
        """No step comes any more: leave the module whole, as plain torch has it. `scratch` is the work's own folder."""
        ...


class TorchEngine:
    """Plain torch in one process, on the device that the module lies on.

    Weights, gradients and moments are float32; `dtype = bfloat16` computes matrix products in bfloat16, by autocast,
    which a CPU's kernels follow in their own way (`native.in_bfloat16`).
    """

    def __init__(self, module: nn.Module, options: Optimisation) -> None:
        assert is_adapted(module) == (options.adapter is not None), "who makes or loads a model to train prepares it"
        self._module = module
        self._clip = options.gradient_clip
        self._optimiser = adamw(module, options)
        self._device = next(module.parameters()).device
        self._bfloat16 = options.dtype == "bfloat16"

    def __call__(self, *inputs: Any) -> Any:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            return self._module(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    @torch.no_grad()
    def step(self, learning_rate: float, permit: Permit = always) -> float:
        gradients = [parameter.grad for parameter in self._module.parameters() if parameter.grad is not None]
        norm = gradient_norm(gradients)
        if permit(norm) and norm < float("inf"):
            for group in self._optimiser.param_groups:
                group["lr"] = learning_rate
            # What the fused update divides gradients by on its way, where it would be used for loss scaling: clipping
            # takes no pass over them of its own.
            self._optimiser.grad_scale = torch.tensor(max(norm / self._clip, 1.0), device=self._device)  # pyrefly: ignore[missing-attribute]
            self._optimiser.step()
        self._optimiser.zero_grad()
        return norm

    def state(self) -> State:
        moments = {
            f"{name}:{key}": value
            for name, parameter in self._module.named_parameters()
            for key, value in self._optimiser.state[parameter].items()
        }
        return {"weights": dict(self._weights()), "optimiser": moments, "random": random_state(self._device)}

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        for name, tensor in self._weights():
            tensor.copy_(state["weights"][name].view_as(tensor))
        parameters = dict(self._module.named_parameters())
        self._optimiser.state.clear()
        for label, value in state["optimiser"].items():
            name, key = label.rsplit(":", 1)
            shaped = value.view_as(parameters[name]) if value.ndim else value  # the count of updates has no shape
            self._optimiser.state[parameters[name]][key] = shaped.to(self._device)
        set_random_state(state["random"], self._device)

    def copy(self, source: nn.Module, target: nn.Module) -> None:
        target.load_state_dict(source.state_dict())

    def finish(self, scratch: Path) -> None:
        pass

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters that learn, tied ones once, and the buffers that belong to the model (the routers' biases)."""
        yield from ((name, weight) for name, weight in self._module.named_parameters() if weight.requires_grad)
        yield from kept_buffers(self._module).items()


ONE = Distributed()
"""One process."""


def acting_copy(model: Decoder, distributed: Distributed) -> Decoder:
    """What samples are drawn from while `model` trains: itself, or a whole copy where its weights will be split."""
    if world().alone or distributed.zero < 3:
        return model
    return copy.deepcopy(model).requires_grad_(False).eval()


def make_engine(module: nn.Module, options: Optimisation, distributed: Distributed) -> Engine:
    """Plain torch where this process is alone, DeepSpeed where it is one of several."""
    if world().alone:
        return TorchEngine(module, options)
    if world().size != distributed.world:
        raise InputError(f"distributed: {distributed.world} ranks: torchrun has started {world().size}")
    from pipeline.training.distributed import DeepSpeedEngine

    return DeepSpeedEngine(module, options, distributed)


def kept_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to the model (the routers' biases)."""
    parts = [(f"{path}." if path else "", part) for path, part in module.named_modules()]
    lost = {path + name for path, part in parts for name in part._non_persistent_buffers_set}
    return {name: buffer for name, buffer in module.named_buffers() if name not in lost}


def random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
