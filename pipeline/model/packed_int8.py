"""Matrices as int8 with one scale for each output channel, in the layout of the compressed-tensors library.

That layout, `pack-quantized`, is what transformers reads with the library at hand. In place of `NAME.weight` there are
`NAME.weight_packed` (four numbers in an int32, each 128 above its int8, the first in the lowest byte),
`NAME.weight_scale` (rows, 1) and `NAME.weight_shape`. Packed are the matrices of all blocks but the routers': rounding
one would send tokens to other experts, and it is small. Embeddings and norms stay as they are.
Rounding is to the nearest, with scale = max |w| / 127 of a row: |w − unpacked| ≤ scale / 2. Nothing is calibrated:
weights alone are rounded, activations stay float32.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.errors import InputError

PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
PARTS = (PACKED, SCALE, SHAPE)
OFFSET = 128  # of a byte above its int8
LARGEST = 127


def is_packed(name: str, tensor: Tensor) -> bool:
    """Whether the tensor of this name on disk is one of those that are packed."""
    return tensor.ndim == 2 and re.search(r"\.layers\.\d+\..*_proj(_with_mqa)?\.weight$", name) is not None


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (rows, columns) -> bytes (rows, columns) uint8 and scales (rows,) float32."""
    weight = weight.float()
    scales = weight.abs().amax(1) / LARGEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))  # of a row of zeros any scale is right
    numbers = (weight / scales[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return (numbers + OFFSET).to(torch.uint8), scales


def unpack(numbers: Tensor, scales: Tensor) -> Tensor:
    """Bytes (rows, columns) and scales (rows,) -> float32 (rows, columns)."""
    return (numbers.float() - OFFSET) * scales[:, None]


def packed_name(name: str) -> str:
    """Of the tensor that stands for the weight `name`."""
    return name.removesuffix(".weight") + PACKED


def scale_name(name: str) -> str:
    return name.removesuffix(".weight") + SCALE


def to_disk(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that stand for `name`, which is_packed. Raises InputError where four numbers do not fill an int32."""
    rows, columns = weight.shape
    if columns % 4:
        raise InputError(f"{name}: has rows of {columns} numbers: must be a multiple of 4 to be packed as int8")
    numbers, scales = pack(weight)
    yield packed_name(name), numbers.view(torch.int32)
    yield scale_name(name), scales[:, None]
    yield name.removesuffix(".weight") + SHAPE, torch.tensor([rows, columns])


def from_disk(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A packed tensor and its scale, as they lie in the file -> bytes (rows, columns), a view, and float32 (rows,).

    Others write the scales in the dtype of their model.
    """
    return packed.view(torch.uint8), scale.reshape(-1).float()
