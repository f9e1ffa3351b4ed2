import pytest
import torch
from torch import Tensor

from pipeline.model import native
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


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("case", FAMILIES)
def test_a_family_is_its_texts_one_by_one(case: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        monkeypatch.setattr(native, "library", lambda: None)
    model = decoder(case)
    alone, trunk, *branches = random_sequences([7, 40, 1, 33, 12])
    lengths, families = [7, 40, 1, 33, 12], [1, 4]
    positions = [torch.arange(start, start + length) for start, length in zip([0, 0, 40, 40, 40], lengths, strict=True)]
    context = PackedSequences(lengths, families)
    together = model(torch.cat([alone, trunk, *branches]), torch.cat(positions), context).hidden.split(lengths)
    texts = [alone, *(torch.cat((trunk, branch)) for branch in branches)]
    sizes = list(map(len, texts))
    apart = model(torch.cat(texts), positions_of(sizes), PackedSequences(sizes)).hidden.split(sizes)
    expected = [apart[0], apart[1][:40], *(text[40:] for text in apart[1:])]
    for mine, reference in zip(together, expected, strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-5, rtol=1e-4)
    learning = [parameter for name, parameter in model.named_parameters() if name != "lm_head.weight"]
    gradients = [torch.autograd.grad(torch.cat(hidden).sin().sum(), learning) for hidden in (together, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


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
