"""The engine for more than one process: DeepSpeed's ZeRO under torchrun. Held equal to `TorchEngine` by tests.

What ZeRO is asked for is in infra/deepspeed/; what follows from our params is filled in here. Three things are ours:
gradients are summed over the ranks (a loss is normalised by the counts of the whole step already), the norm is known
and `permit` asked before anything changes, and a checkpoint holds each rank's share under the parameters' own names, so
that any number of processes, one with plain torch too, goes on from it.
None of DeepSpeed's own operators is compiled: the optimiser is torch's.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from pipeline.model.decoder import Block, Decoder
from pipeline.params import Distributed, Optimisation
from pipeline.process import importing
from pipeline.training.engine import Permit, State, always, kept_buffers, random_state, set_random_state
from pipeline.training.optimiser import AdamW, adamw, gradient_norm
from pipeline.training.pieces import piece_name
from pipeline.training.zero import OURS, base_config
from pipeline.world import barrier, bound_waiting, world

Item = TypeVar("Item")

BUCKET = 2**27
"""Numbers that are gathered at a time to be copied."""


class _Gated(AdamW):
    """An optimiser that asks before it updates, whoever calls it."""

    engine: "DeepSpeedEngine"

    def step(self, closure: Any = None) -> None:
        if self.engine.may_update():
            super().step()


class _Whole(nn.Module):
    """The module, in the dtype that its products are computed in. DeepSpeed forbids to ask for it around the engine."""

    def __init__(self, module: nn.Module, device: torch.device, *, bfloat16: bool) -> None:
        super().__init__()
        self.module = module
        self._device, self._bfloat16 = device, bfloat16

    def forward(self, *inputs: Any) -> Any:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            return self.module(*inputs)


@dataclass(frozen=True, slots=True)
class _Home:
    """Where a rank keeps `count` numbers of a parameter, from number `start` of it on."""

    holder: Tensor  # what the optimiser updates
    offset: int  # in the holder
    start: int  # in the parameter
    count: int

    def of(self, tensor: Tensor) -> Tensor:
        """The same numbers of the holder, or of what is laid out like it: a view (count,)."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.count]


class DeepSpeedEngine:
    """An `Engine` of `world().size` processes; every method is called by all of them."""

    def __init__(self, module: nn.Module, options: Optimisation, distributed: Distributed) -> None:
        device = next(module.parameters()).device
        deepspeed = self._deepspeed = _deepspeed(device)
        self._attributes = {part: set(vars(part)) for part in module.modules()}
        self._module, self._zero_level, self._clip = module, distributed.zero, options.gradient_clip
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._device = device
        self._optimiser = adamw(module, options, _Gated)
        assert isinstance(self._optimiser, _Gated)
        self._optimiser.engine = self
        self._permit: Permit | None = None
        self._norm: float | None = None
        self._allowed = False
        whole = _Whole(module, device, bfloat16=options.dtype == "bfloat16")
        if distributed.zero == 3:
            # A block's weights come and go together: its parts read each other's, and one message is better than ten.
            deepspeed.utils.set_z3_leaf_modules(whole, [Block], raise_if_not_found=False)
        config = base_config(distributed)
        config["zero_optimization"]["stage"] = distributed.zero
        config |= {key: value for key, value in OURS.items() if value is not None}
        with _without_compiler():
            self._engine, self._zero, *_ = deepspeed.initialize(
                model=whole, optimizer=self._optimiser, config=config, dist_init_required=False
            )
        bound_waiting()
        if distributed.zero == 3:
            for part in module.modules():
                if isinstance(part, Decoder):  # the loss reads it outside of its own module
                    deepspeed.zero.register_external_parameter(module, part.unembedding)

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * world().size)  # DeepSpeed takes the mean over the ranks

    # ------------------------------------------------------------ step

    def step(self, learning_rate: float, permit: Permit = always) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._permit, self._norm = permit, None
        self._engine.step()
        if self._norm is None:  # not a number, and so DeepSpeed never came to the optimiser
            self._decide(float("inf"))
        self._permit = None
        assert self._norm is not None
        return self._norm

    def may_update(self) -> bool:
        """Whether the optimiser, whose call this is, updates; asked for each part of the weights."""
        if self._permit is None:  # DeepSpeed makes itself ready
            return False
        if self._norm is None:
            self._decide(self._gradient_norm())
        return self._allowed

    def _decide(self, norm: float) -> None:
        assert self._permit is not None
        self._norm = norm
        self._allowed = self._permit(norm) and norm < float("inf")
        self._optimiser.grad_scale = torch.tensor(max(norm / self._clip, 1.0), device=self._device)  # pyrefly: ignore[missing-attribute]

    def _gradient_norm(self) -> float:
        if self._zero_level:
            return float(self._zero._global_grad_norm)
        return gradient_norm([held.grad for held in self._module.parameters() if held.grad is not None])

    # ------------------------------------------------------------ state

    def state(self) -> State:
        """This rank's share, under names of `pieces`; all ranks' together are the state."""
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for name, parameter in self._module.named_parameters():
            home = self._share(parameter) if parameter.requires_grad else None  # what is frozen never changes
            if home is None:
                continue
            weights[piece_name(name, home.start)] = home.of(home.holder)
            for key, value in self._optimiser.state.get(home.holder, {}).items():
                if value.ndim:
                    moments[piece_name(f"{name}:{key}", home.start)] = home.of(value)
                elif home.start == 0:  # the count of updates
                    moments[f"{name}:{key}"] = value.clone()  # which parts share
        if not world().leads:
            return {"weights": weights, "optimiser": moments}
        weights |= kept_buffers(self._module)
        return {"weights": weights, "optimiser": moments, "random": random_state(self._device)}

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        homes: dict[str, _Home] = {}
        for name, parameter in self._module.named_parameters():
            if not parameter.requires_grad:
                continue
            whole, home = state["weights"][name].flatten(), self._home(parameter)
            if home is not None:
                homes[name] = home
                home.of(home.holder).copy_(whole[home.start : home.start + home.count])
            if self._zero_level == 3 and home is not None:
                held: Any = parameter
                held.ds_tensor.view(-1)[: home.count].copy_(whole[home.start : home.start + home.count])
            elif self._zero_level in (1, 2):
                parameter.copy_(whole.view_as(parameter))
        for name, buffer in kept_buffers(self._module).items():
            buffer.copy_(state["weights"][name])
        self._optimiser.state.clear()
        for label, value in state["optimiser"].items():
            name, key = label.rsplit(":", 1)
            if name in homes:
                self._set_moment(homes[name], key, value)
        set_random_state(state["random"], self._device)

    def _set_moment(self, home: _Home, key: str, value: Tensor) -> None:
        held = self._optimiser.state[home.holder]
        if value.ndim == 0:
            held[key] = value.clone()
            return
        if key not in held:
            held[key] = torch.zeros_like(home.holder)
        home.of(held[key]).copy_(value.flatten()[home.start : home.start + home.count])

    def _home(self, parameter: nn.Parameter) -> _Home | None:
        """The numbers of a parameter that this rank updates; None where it has none of them."""
        if self._zero_level == 3:
            held: Any = parameter
            start = held.ds_tensor.numel() * world().rank
            count = min(held.ds_tensor.numel(), held.ds_numel - start)
            if count <= 0:
                return None
            if not parameter.requires_grad:
                return _Home(held.ds_tensor, 0, start, count)
            group, offset, _ = self._zero.grad_position[self._zero.get_param_id(parameter)]
            return _Home(self._zero.fp32_partitioned_groups_flat[group], offset, start, count)
        if self._zero_level and parameter.requires_grad:
            fragment = parameter._hp_mapping  # pyrefly: ignore[missing-attribute]
            if fragment is None:
                return None
            of_holder, of_parameter = fragment.hp_fragment_address, fragment.lp_fragment_address
            holder = self._zero.single_partition_of_fp32_groups[fragment.param_group_index]
            return _Home(holder, of_holder.start, of_parameter.start, of_holder.numel)
        return _Home(parameter, 0, 0, parameter.numel())

    def _share(self, parameter: nn.Parameter) -> _Home | None:
        """The numbers of a parameter that this rank saves: what only it has, or its part of what all have."""
        home = self._home(parameter)
        if home is None or home.holder is not parameter:
            return home
        size = -(-home.count // world().size)
        start = size * world().rank
        return _Home(parameter, start, start, min(size, home.count - start)) if start < home.count else None

    # ------------------------------------------------------------ the weights, whole

    @torch.no_grad()
    def copy(self, source: nn.Module, target: nn.Module) -> None:
        pairs = list(zip(source.parameters(), target.parameters(), strict=True))
        for bucket in _buckets(pairs, [self._count(parameter) for parameter, _ in pairs]):
            with self._gathered([parameter for parameter, _ in bucket]):
                for parameter, copy in bucket:
                    copy.copy_(parameter)
        for buffer, kept in zip(source.buffers(), target.buffers(), strict=True):
            kept.copy_(buffer)

    def finish(self, scratch: Path) -> None:
        """Weights that are split are laid end to end in a file there, each rank writing its share, and mapped into
        memory from it: so no rank has to hold them all at once, and who goes through them holds what it looks at.
        """
        self._engine.empty_partition_cache()
        whole = self._mapped(scratch) if self._zero_level == 3 else {}
        named = {
            parameter: nn.Parameter(whole.get(name, parameter.detach()), requires_grad=parameter.requires_grad)
            for name, parameter in self._module.named_parameters()
        }
        self._engine.destroy()
        for part, attributes in self._attributes.items():
            part._parameters = {
                name: None if parameter is None else named[parameter] for name, parameter in part._parameters.items()
            }
            for name in vars(part).keys() - attributes:
                delattr(part, name)
        if whole:
            self._module.to("cpu")  # buffers, as they are beside parameters that lie there now

    @torch.no_grad()
    def _mapped(self, scratch: Path) -> dict[str, Tensor]:
        """Every parameter of a split module, in memory that is mapped from one file, which has no name any more."""
        path, starts, size = scratch / "whole.bin", dict[str, int](), 0
        for name, parameter in self._module.named_parameters():
            starts[name] = size
            size += self._count(parameter)
        if world().leads:
            scratch.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(size * torch.float32.itemsize)
        barrier()
        numbers = torch.from_file(str(path), shared=True, size=size, dtype=torch.float32)
        for name, parameter in self._module.named_parameters():
            home = self._home(parameter)
            if home is not None:
                start = starts[name] + home.start
                numbers[start : start + home.count].copy_(home.of(home.holder))
        barrier()
        if world().leads:
            path.unlink()
        return {
            name: numbers[start : start + shape.numel()].view(shape)
            for (name, start), shape in zip(starts.items(), self._shapes.values(), strict=True)
        }

    def _count(self, parameter: nn.Parameter) -> int:
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def _gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
        return self._deepspeed.zero.GatheredParameters(parameters, enabled=self._zero_level == 3)


def _buckets(items: list[Item], sizes: list[int]) -> Iterator[list[Item]]:
    """Items in order, in runs of at most BUCKET numbers or of one item."""
    bucket: list[Item] = []
    held = 0
    for item, size in zip(items, sizes, strict=True):
        if bucket and held + size > BUCKET:
            yield bucket
            bucket, held = [], 0
        bucket.append(item)
        held += size
    if bucket:
        yield bucket


def _deepspeed(device: torch.device) -> Any:
    """The library, made to use the device that the module lies on, once this process has joined the others."""
    world()
    deepspeed = imported_deepspeed(device)
    deepspeed.init_distributed(dist_init_required=False)
    deepspeed.utils.logger.setLevel("ERROR")
    return deepspeed


def imported_deepspeed(device: torch.device) -> Any:
    """The library, which looks for its device as it is imported."""
    os.environ["DS_ACCELERATOR"] = "cuda" if device.type == "cuda" else "cpu"
    os.environ.setdefault("DS_LOG_LEVEL", "ERROR")
    with importing(), _not_installed("mlflow"), _without_compiler():  # MLflow is for its tuner
        import deepspeed

    # It calls torch's collectives by names that torch is about to give up.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # None of its operators: they would be compiled at first use.
    deepspeed.ops.__compatible_ops__ = {}  # pyrefly: ignore[missing-attribute]
    return deepspeed


@contextmanager
def _not_installed(module: str) -> Iterator[None]:
    """To import it raises ImportError in this block, unless that was done before."""
    absent = module not in sys.modules
    if absent:
        sys.modules[module] = None  # pyrefly: ignore[unsupported-operation]
    try:
        yield
    finally:
        if absent:
            del sys.modules[module]


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Functions that are marked for torch's compiler, or as not for it, stay as they are in this block.

    Nothing here is compiled, and to import the compiler for the marks would be a third of the time that a rank takes to
    start.
    """
    marks, mark = (torch.compile, torch.compiler.disable, torch._disable_dynamo), cast(Any, _as_it_is)
    torch.compile = torch.compiler.disable = torch._disable_dynamo = mark
    try:
        yield
    finally:
        torch.compile, torch.compiler.disable, torch._disable_dynamo = marks


def _as_it_is(function: Any = None, **options: Any) -> Any:
    return function or _as_it_is
