"""Our decoder against that of transformers, on the same checkpoints: logits, gradients, and what each reads."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.model.attention import PackedSequences
from pipeline.model.checkpoint import disk_tensors, load_model, save_model
from pipeline.model.decoder import Decoder

from .reference import CASES, positions_of, random_sequences, write_checkpoint

LENGTHS = [5, 23, 1, 40, 9]


def our_logits(model: Decoder, sequences: list[Tensor]) -> Tensor:
    lengths = [len(sequence) for sequence in sequences]
    output = model(torch.cat(sequences), positions_of(lengths), PackedSequences(lengths))
    return model.logits(output.hidden)


def their_logits(model: PreTrainedModel, sequences: list[Tensor]) -> Tensor:
    return torch.cat([model(sequence[None]).logits[0] for sequence in sequences])


def our_gradients(model: Decoder) -> dict[str, Tensor]:
    """Gradients under the names on disk."""
    twin = Decoder(model.config)
    for ours, gradient in zip(twin.parameters(), model.parameters(), strict=True):
        ours.data = torch.zeros_like(ours) if gradient.grad is None else gradient.grad
    return disk_tensors(twin)


def their_gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    """Gradients under the names on disk: experts apart."""
    gradients: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        prefix, kind = name.rsplit(".", 1)
        assert parameter.grad is not None, name
        if kind == "gate_up_proj":
            for expert, (gate, up) in enumerate(gradient.chunk(2) for gradient in parameter.grad):
                gradients[f"{prefix}.{expert}.gate_proj.weight"] = gate
                gradients[f"{prefix}.{expert}.up_proj.weight"] = up
        elif kind == "down_proj":
            gradients |= {f"{prefix}.{expert}.down_proj.weight": down for expert, down in enumerate(parameter.grad)}
        else:
            gradients[name] = parameter.grad
    return gradients


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_match_transformers(case: str, tmp_path: Path) -> None:
    reference = write_checkpoint(case, tmp_path)
    model = load_model(tmp_path)
    sequences = random_sequences(LENGTHS)
    ours, theirs = our_logits(model, sequences), their_logits(reference, sequences)
    assert theirs.std() > 0.3, "the reference says too little to be compared with"
    assert (ours - theirs).abs().max() <= 1e-4

    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    (ours * direction).mean().backward()
    (theirs * direction).mean().backward()
    mine = our_gradients(model)
    for name, expected in their_gradients(reference).items():
        scale = expected.abs().max().clamp_min(1e-9)
        assert (mine[name] - expected).abs().max() / scale <= 1e-3, name


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_what_we_write(case: str, tmp_path: Path) -> None:
    reference = write_checkpoint(case, tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours", max_shard_bytes=40_000)
    assert (tmp_path / "ours" / "model.safetensors.index.json").is_file()
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    kept = again.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in reference.state_dict().items())
    sequences = random_sequences(LENGTHS)
    with torch.no_grad():
        drift = their_logits(again.eval(), sequences) - their_logits(reference, sequences)
    assert drift.abs().max() <= 1e-5


@pytest.mark.parametrize("case", ["deepseek-query-latent-groups", "qwen3-moe", "llama-grouped"])
def test_reads_a_sharded_checkpoint(case: str, tmp_path: Path) -> None:
    reference = write_checkpoint(case, tmp_path, shard="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sequences = random_sequences(LENGTHS)
    assert (our_logits(load_model(tmp_path), sequences) - their_logits(reference, sequences)).abs().max() <= 1e-4
