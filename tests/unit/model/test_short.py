import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.packed import packed_attention
from pipeline.model.ragged import layout
from pipeline.model.short import LONGEST, Segments, short_attention

SCALE = 0.3


def one_by_one(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    attended = []
    for q, k, v in zip(*(part.split(lengths) for part in (query, key, value)), strict=True):
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE, enable_gqa=True)
        attended.append(out.transpose(0, 1))
    return torch.cat(attended)


@pytest.mark.parametrize("shared", [1, 2, 4], ids=lambda shared: f"{shared} query heads a key head")
@pytest.mark.parametrize(
    "lengths", [[1], [5, 5], [40, 3, 1, 33, 17, 9], [LONGEST, 2], [16, 15, 17], [LONGEST + 60, 7]], ids=str
)
def test_both_kernels_are_attention_inside_each_sequence(lengths: list[int], shared: int):
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 8), (4 // shared, 8), (4 // shared, 6))
    inputs = [torch.randn(sum(lengths), *shape, generator=generator, requires_grad=True) for shape in shapes]
    gradient = torch.randn(sum(lengths), 4, 6, generator=generator)
    expected = one_by_one(*inputs, lengths)
    blocks, segments = layout(torch.tensor(lengths)), Segments.of(lengths, [1] * len(lengths))
    for attended in (
        short_attention(*inputs, SCALE, segments),
        packed_attention(*inputs, SCALE, blocks),
    ):
        torch.testing.assert_close(attended, expected)
        ours = torch.autograd.grad(attended, inputs, gradient)
        theirs = torch.autograd.grad(expected, inputs, gradient, retain_graph=True)
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-4)
