"""Which device a model of a stage computes on."""

import copy
import os
from typing import TypeVar

import torch
from torch import nn

from pipeline.errors import InputError

Module = TypeVar("Module", bound=nn.Module)


def stage_device() -> torch.device:
    """A GPU where this process sees one, of several ranks each its own; else the CPU.

    Raises InputError where there are fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise InputError(f"distributed.ranks: must be at most {count}, the GPUs of this machine, for rank {index}")
    return torch.device("cuda", index)


def lent(model: Module, device: torch.device) -> Module:
    """The model itself where it lies on `device`, else a copy of it there, to be asked and dropped.

    What was split among ranks comes back as a file that all of them map: moved there, each would hold it all for good.
    """
    copies: dict[int, torch.Tensor] = {
        id(tensor): nn.Parameter(tensor.detach().to(device), requires_grad=tensor.requires_grad)
        for tensor in model.parameters()
        if tensor.device != device
    }
    copies |= {id(tensor): tensor.to(device) for tensor in model.buffers() if tensor.device != device}
    return copy.deepcopy(model, copies) if copies else model
