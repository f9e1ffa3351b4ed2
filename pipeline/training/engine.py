"""What carries out a step: forward, backward, update. One process with plain torch here.

The loop speaks to an `Engine` alone, so an engine that spreads parameters over many processes can take its place. For
that, the whole forward pass up to the loss is one module: such an engine gathers parameters around its call.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.model.adapter import is_adapted
from pipeline.params import Optimisation
from pipeline.training.optimiser import adamw, gradient_norm

State = dict[str, dict[str, Tensor]]
"""Everything that the next step depends on: part → name → tensor."""


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

    def load_state(self, state: State) -> None: ...


class TorchEngine:
    """Plain torch in one process, on the device that the module lies on.

    Weights, gradients and moments are float32; `dtype = bfloat16` computes matrix products in bfloat16 (autocast).
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
            self._optimiser.grad_scale = torch.tensor(max(norm / self._clip, 1.0), device=self._device)  # type: ignore[attr-defined]
            self._optimiser.step()
        self._optimiser.zero_grad()
        return norm

    def state(self) -> State:
        moments = {
            f"{name}:{key}": value
            for name, parameter in self._module.named_parameters()
            for key, value in self._optimiser.state[parameter].items()
        }
        return {"weights": dict(self._weights()), "optimiser": moments, "random": self._random()}

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        for name, tensor in self._weights():
            tensor.copy_(state["weights"][name])
        parameters = dict(self._module.named_parameters())
        self._optimiser.state.clear()
        for label, value in state["optimiser"].items():
            name, key = label.rsplit(":", 1)
            self._optimiser.state[parameters[name]][key] = value.to(self._device)
        torch.set_rng_state(state["random"]["cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self._device)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters that learn, tied ones once, and the buffers that belong to the model (the routers' biases)."""
        kept = self._module.state_dict()
        yield from ((name, weight) for name, weight in self._module.named_parameters() if weight.requires_grad)
        yield from ((name, buffer) for name, buffer in self._module.named_buffers() if name in kept)

    def _random(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return states
