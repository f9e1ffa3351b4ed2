"""Experts that stay where they are stored against the same files read into memory: the same bits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import InputError
from pipeline.model import native
from pipeline.model.checkpoint import load_model, load_to_answer, save_model
from pipeline.model.decoder import Decoder
from pipeline.model.experts import MixtureOfExperts
from pipeline.model.flops import arithmetic
from pipeline.model.stored import StoredExperts

from ..generation.toys import GREEDY, complete, engine, request
from .reference import decoder
from .test_pruning import logits

CASES = ["deepseek-plain", "deepseek-query-latent-groups", "qwen3-moe"]
HOT = [range(5), {11}]


def stored(model: Decoder) -> list[StoredExperts]:
    parts = [part.experts for part in model.modules() if isinstance(part, MixtureOfExperts)]
    assert all(isinstance(part, StoredExperts) for part in parts)
    return [part for part in parts if isinstance(part, StoredExperts)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("hot", [(), HOT])
def test_mapped_experts_give_the_same_bits(case: str, packed: bool, hot: list[range], tmp_path: Path) -> None:
    model = decoder(case)
    save_model(model, tmp_path, packed=packed)
    whole, mapped = load_model(tmp_path), load_to_answer(tmp_path, mapped=True, hot=hot)
    assert len(stored(mapped)) == 2 + case.startswith("qwen")
    with torch.inference_mode():
        assert torch.equal(logits(mapped), logits(whole))
    assert mapped.size() == whole.size()
    assert arithmetic(mapped) == arithmetic(whole)
    assert not any("experts" in name and "shared" not in name for name, _ in mapped.named_parameters())
    ask = [request(torch.arange(3, 3 + length), GREEDY) for length in (4, 9, 2)]
    ours, theirs = complete(engine(mapped), ask), complete(engine(whole), ask)
    assert [one.tokens.tolist() for one in ours.values()] == [one.tokens.tolist() for one in theirs.values()]
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        assert (one.log_probabilities == other.log_probabilities).all()


def test_packed_experts_in_memory_are_bytes_and_give_the_same_bits(tmp_path: Path) -> None:
    save_model(decoder("deepseek-plain"), tmp_path, packed=True)
    whole, bytes_ = load_model(tmp_path), load_to_answer(tmp_path)
    assert len(stored(bytes_)) == 2
    with torch.inference_mode():
        assert torch.equal(logits(bytes_), logits(whole))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_may_have_the_dtype_of_another_writer(dtype: torch.dtype, tmp_path: Path) -> None:
    save_model(decoder("deepseek-plain"), tmp_path, packed=True)
    file = tmp_path / "model.safetensors"
    tensors = {name: part.to(dtype) if name.endswith("_scale") else part for name, part in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    whole, bytes_ = load_model(tmp_path), load_to_answer(tmp_path)
    with torch.inference_mode():
        assert torch.equal(logits(bytes_), logits(whole))
        assert logits(whole).isfinite().all()


def test_without_kernels_it_is_the_same_but_for_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(decoder("deepseek-plain"), tmp_path, packed=True)
    with torch.inference_mode():
        ours = logits(load_to_answer(tmp_path, mapped=True))
        monkeypatch.setattr(native, "library", lambda: None)
        torch.testing.assert_close(logits(load_to_answer(tmp_path, mapped=True)), ours, atol=1e-4, rtol=1e-4)


def test_what_is_not_packed_and_not_mapped_is_an_ordinary_model(tmp_path: Path) -> None:
    save_model(decoder("deepseek-plain"), tmp_path)
    assert not any(isinstance(part, StoredExperts) for part in load_to_answer(tmp_path).modules())


def test_gate_and_up_in_other_files_and_half_precision_are_copied(tmp_path: Path) -> None:
    model = decoder("deepseek-plain")
    save_model(model, tmp_path / "shards", max_shard_bytes=1000)
    save_model(decoder("deepseek-plain").to(torch.bfloat16), tmp_path / "half")
    for name in ("shards", "half"):
        with torch.inference_mode():
            assert torch.equal(
                logits(load_to_answer(tmp_path / name, mapped=True)), logits(load_model(tmp_path / name))
            )


def test_a_missing_expert_and_a_wrong_shape_are_named(tmp_path: Path) -> None:
    save_model(decoder("deepseek-plain"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.experts.7.up_proj.weight"
    save_file({**tensors, name: torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"experts\.7\.up_proj\.weight has shape \[3, 3\]"):
        load_to_answer(tmp_path, mapped=True)
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"1 missing \(model\.layers\.1\.mlp\.experts\.7\.up_proj\.weight\)"):
        load_to_answer(tmp_path, mapped=True)


def test_it_does_not_learn(tmp_path: Path) -> None:
    save_model(decoder("deepseek-plain"), tmp_path)
    model = load_to_answer(tmp_path, mapped=True)
    part = stored(model)[0]
    with pytest.raises(AssertionError, match="do not learn"):
        part(torch.zeros(1, 32), torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3), torch.zeros(1, 32))
