"""The processes that train one model together, and what they tell each other. Alone, nothing is asked of torch for it.

Every rank runs the same program on the same data and takes its share of each step, so that what is decided from figures
is decided alike everywhere. What may differ between them (a clock, an answer from outside, a process that was told to
stop) is one rank's to know: `led` asks the first one and tells the others.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from pipeline.errors import EXPECTED
from pipeline.process import RANK_TIMEOUT, is_rank

Value = TypeVar("Value")
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among them."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1


@cache
def world() -> World:
    """The world that torchrun made, joined at the first call; a process that it did not start is alone."""
    size = int(os.environ["WORLD_SIZE"]) if is_rank() else 1
    if size == 1:
        return World()
    import torch.distributed as dist

    # Objects and figures go over gloo from any device; gradients and weights go where DeepSpeed's tensors are.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=_patience())
    return World(dist.get_rank(), size)


def bound_waiting() -> None:
    """Let the groups that a library has made since wait no longer than ours: torch's own default is half an hour."""
    import torch.distributed.distributed_c10d as groups

    for group in list(groups._world.pg_map):
        groups._set_pg_timeout(_patience(), group)


def _patience() -> timedelta:
    return timedelta(seconds=float(os.environ.get(RANK_TIMEOUT, "600")))


def total(figures: Tensor) -> Tensor:
    """The sum over the ranks, of the same bits on each; a new tensor on the same device."""
    return figures if world().alone else _reduced(figures, "SUM")


def largest(figures: Tensor) -> Tensor:
    """The largest of the ranks' values, element by element."""
    return figures if world().alone else _reduced(figures, "MAX")


def _reduced(figures: Tensor, operation: str) -> Tensor:
    import torch.distributed as dist

    reduced = figures.detach().to("cpu", copy=True)
    dist.all_reduce(reduced, getattr(dist.ReduceOp, operation))
    return reduced.to(figures.device)


def gathered(value: Value) -> list[Value]:
    """Every rank's value, in the ranks' order."""
    if world().alone:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world().size
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every rank has come here."""
    gathered(None)


def led(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """The function, called on the first rank alone; all return its value, or raise what ends a stage by rule."""
    if world().alone:
        return function

    def asked(*arguments: Arguments.args, **named: Arguments.kwargs) -> Value:
        import torch.distributed as dist

        said: list[Any] = [None, None]
        if world().leads:
            try:
                said[0] = function(*arguments, **named)
            except EXPECTED as error:
                said[1] = error
        dist.broadcast_object_list(said)
        if said[1] is not None:
            raise said[1]
        return said[0]

    return asked


def deal(costs: Sequence[int], hands: int) -> list[list[int]]:
    """Places of items by hand, so that the hands' sums of costs are alike: the dearest first, each to the poorest hand.

    A function of its arguments, so every rank knows all hands. Within a hand places stand in order.
    """
    held, sums = [list[int]() for _ in range(hands)], [0] * hands
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        poorest = min(range(hands), key=lambda hand: (sums[hand], hand))
        held[poorest].append(place)
        sums[poorest] += costs[place]
    return [sorted(places) for places in held]
