import pytest
import torch
from torch import Tensor

from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder

from .reference import decoder, positions_of, random_sequences

FAMILIES = ["deepseek-query-latent-groups", "deepseek-halves-bias-two-shared", "qwen3-moe", "llama-grouped"]


@torch.no_grad()
def hidden(model: Decoder, sequences: list[Tensor]) -> list[Tensor]:
    lengths = [len(sequence) for sequence in sequences]
    output = model(torch.cat(sequences), positions_of(lengths), PackedSequences(lengths))
    return list(output.hidden.split(lengths))


@pytest.mark.parametrize("case", FAMILIES)
def test_packed_is_one_by_one(case: str) -> None:
    model, sequences = decoder(case), random_sequences([7, 1, 33, 12, 90, 12])
    together = hidden(model, sequences)
    for sequence, packed in zip(sequences, together, strict=True):
        torch.testing.assert_close(packed, hidden(model, [sequence])[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", FAMILIES)
def test_no_token_sees_a_later_one_or_another_sequence(case: str) -> None:
    model, (first, second) = decoder(case), random_sequences([20, 15])
    changed = first.clone()
    changed[12] = (changed[12] + 1) % 61
    before, other = hidden(model, [first, second])
    after, other_after = hidden(model, [changed, second])
    torch.testing.assert_close(before[:12], after[:12], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(other, other_after, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(before[12:], after[12:], atol=1e-3)


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_an_empty_sequence_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        PackedSequences(lengths)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", FAMILIES)
def test_a_gpu_says_what_the_processor_says(case: str) -> None:
    model, sequences = decoder(case), random_sequences([7, 40, 12])
    lengths = [len(sequence) for sequence in sequences]
    expected = torch.cat(hidden(model, sequences))
    tokens, positions = torch.cat(sequences).cuda(), positions_of(lengths).cuda()
    output = model.cuda()(tokens, positions, PackedSequences(lengths)).hidden
    output.sum().backward()
    torch.testing.assert_close(output.detach().cpu(), expected, atol=1e-3, rtol=1e-3)
