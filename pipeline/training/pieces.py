"""Named tensors that several ranks have saved their parts of, put together as they are asked for.

A piece is a run of a tensor's numbers, laid flat; its name says whose they are and which is the first: `name@start`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


def piece_name(name: str, start: int) -> str:
    return f"{name}@{start}"


class Tensors(Mapping[str, Tensor]):
    """What lies in files of one rank or of several, on the CPU; one tensor at a time is read.

    A tensor that was saved whole has its shape, one of pieces is flat.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._places: dict[str, list[tuple[int, Any, str]]] = {}
        for path in files:
            file = safe_open(path, "pt")
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                name, _, start = key.rpartition("@")
                self._places.setdefault(name or key, []).append((int(start) if name else 0, file, key))

    def __getitem__(self, name: str) -> Tensor:
        tensors = [file.get_tensor(key) for _, file, key in sorted(self._places[name], key=lambda place: place[0])]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
