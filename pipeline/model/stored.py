"""Routed experts where they are stored: in a file that is mapped into memory, or in memory as int8.

A token meets few of the experts, so most of a sparse model's weights need not be at hand. Here an expert's matrices
stay where the checkpoint's file has them, mapped and not read: what a token chooses is fetched by its first use, the
system keeps it in the page cache as long as nothing else needs the memory, and drops it without writing anything. The
hottest experts can be copied into memory of our own, which is not dropped. Packed experts (packed_int8) stay bytes
wherever they are, and are unpacked when they are used.
Different from the textbook, which offloads to and fro by a cache of its own: the page cache is one, shared by all
processes of a machine that serve the same file, and no line of code decides what it drops.
The logits are bit for bit those of `load_model` of the same files. For answering alone: nothing here learns.
"""

import ctypes
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.model import native
from pipeline.model.dispatch import Matrices, run_experts
from pipeline.model.packed_int8 import unpack

USE = "expert_use.json"
"""Of a release: for each mixture layer, each expert's share of the choices on the task."""


def hottest(folder: Path, share: float) -> list[list[int]]:
    """For each mixture layer the most used `share` of the experts, by the folder's `USE`; empty where it has none."""
    if not (folder / USE).is_file():
        return []
    use: list[list[float]] = json.loads((folder / USE).read_text(encoding="utf-8"))
    return [sorted(range(len(row)), key=lambda expert: -row[expert])[: round(share * len(row))] for row in use]


@dataclass(frozen=True, slots=True)
class Stored:
    """One matrix (rows, columns): float32, or bytes with a scale for each row."""

    numbers: Tensor
    scales: Tensor | None

    def unpacked(self) -> Tensor:
        return self.numbers if self.scales is None else unpack(self.numbers, self.scales)


@dataclass(frozen=True, slots=True)
class StoredExpert:
    gate: Stored
    up: Stored
    down: Stored

    @property
    def side_by_side(self) -> bool:
        """Whether gate and up are one matrix in memory, as a kernel wants them; in a file they are by their names."""
        return self.up.numbers.data_ptr() == self.gate.numbers.data_ptr() + self.gate.numbers.nbytes

    def copied(self) -> "StoredExpert":
        """In memory of its own, gate and up side by side."""
        gate, up = torch.cat((self.gate.numbers, self.up.numbers)).chunk(2)
        down = Stored(self.down.numbers.clone(), self.down.scales)
        return StoredExpert(Stored(gate, self.gate.scales), Stored(up, self.up.scales), down)


class StoredExperts(nn.Module):
    """In place of `Experts`: E feed-forwards, each where it is stored."""

    def __init__(self, experts: Sequence[StoredExpert], in_memory: Collection[int]) -> None:
        """Those `in_memory` are copied; the others stay where they are."""
        super().__init__()
        self._experts = [
            expert.copied() if index in in_memory or not expert.side_by_side else expert
            for index, expert in enumerate(experts)
        ]
        self.count = len(experts)
        self.mapped = sum(mine is given for mine, given in zip(self._experts, experts, strict=True))
        """Of them, how many stay where they were."""
        gate_up = _Table([(expert.gate, expert.up) for expert in self._experts])
        self._tables = gate_up, _Table([(expert.down,) for expert in self._experts])

    @property
    def size(self) -> int:
        """Numbers in all matrices."""
        matrices = [matrix for expert in self._experts for matrix in (expert.gate, expert.up, expert.down)]
        return sum(matrix.numbers.numel() for matrix in matrices)

    def matrices(self) -> tuple[Matrices, Matrices]:
        """Where a kernel finds gate_up and down."""
        return self._tables[0].matrices, self._tables[1].matrices

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor, base: Tensor) -> Tensor:
        """As `Experts.forward`."""
        assert not torch.is_grad_enabled(), "stored experts answer, they do not learn"
        if native.usable(x, weights, base):
            return self._native(x, experts, weights, base)
        used, places = experts.unique(return_inverse=True)
        chosen = [self._experts[expert] for expert in used.tolist()]
        gate_up = torch.stack([torch.cat((one.gate.unpacked(), one.up.unpacked())) for one in chosen])
        down = torch.stack([one.down.unpacked() for one in chosen])
        return run_experts(x, gate_up, down, places, weights, base)

    def _native(self, x: Tensor, experts: Tensor, weights: Tensor, base: Tensor) -> Tensor:
        x, weights, experts, base = (part.contiguous() for part in (x, weights, experts, base))
        count, (hidden, size) = len(self._experts), self._experts[0].down.numbers.shape
        order, slots, starts = torch.empty_like(experts), torch.empty_like(experts), experts.new_empty(count + 2)
        native.call("experts_plan", experts.numel(), count, experts, order, slots, starts)
        rows, out = x.new_empty(experts.numel(), hidden), torch.empty_like(x)
        shape = (native.in_bfloat16(), *experts.shape, hidden, size, count)
        matrices = map(ctypes.byref, self.matrices())
        native.call("experts", *shape, x, *matrices, weights, order, slots, starts, base, None, rows, out)
        return out


class _Table:
    """The addresses of one matrix of every expert, and of its scales, for as long as the kernel may ask."""

    def __init__(self, matrices: Sequence[tuple[Stored, ...]]) -> None:
        """Of each expert the parts of the matrix, which lie side by side."""
        assert all(part.numbers.is_contiguous() for parts in matrices for part in parts)
        self._numbers = [parts[0].numbers for parts in matrices]
        self._scales = [torch.cat(known) for parts in matrices if (known := _scales(parts))]
        assert len(self._scales) in (0, len(matrices)), "all experts of a layer are packed, or none is"
        self._addresses = [_addresses(tensors) for tensors in (self._numbers, self._scales)]
        places, scales = map(ctypes.addressof, self._addresses)
        self.matrices = Matrices(None, places, scales if self._scales else None, None)


def _scales(parts: Sequence[Stored]) -> list[Tensor]:
    return [part.scales for part in parts if part.scales is not None]


def _addresses(tensors: Sequence[Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
