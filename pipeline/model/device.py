"""Which device a model of a stage computes on."""

import os

import torch

from pipeline.errors import InputError


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
