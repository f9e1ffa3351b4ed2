"""int8 matrices: what rounding costs, and that others read the layout."""

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.errors import InputError
from pipeline.model import packed_int8
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.packed_int8 import from_disk, is_packed, pack, to_disk, unpack
from pipeline.model.packed_layout import CONFIG

from .reference import decoder
from .test_pruning import LENGTHS, logits

CASES = ["deepseek-plain", "deepseek-query-latent-groups", "qwen3-moe", "llama-grouped"]


def drawn(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 9), st.integers(1, 40), st.floats(-30, 30), st.integers(0, 99))
def test_a_number_moves_by_half_a_step_at_most(rows: int, columns: int, power: float, seed: int) -> None:
    weight = drawn(rows, columns, seed) * 2.0**power
    numbers, scales = pack(weight)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((unpack(numbers, scales) - weight).abs() <= step / 2 * (1 + 1e-4)).all()


def test_what_is_unpacked_packs_to_the_same_and_zeros_stay() -> None:
    weight = drawn(6, 8)
    weight[2] = 0
    numbers, scales = pack(weight)
    again, same = pack(unpack(numbers, scales))
    assert torch.equal(again, numbers)
    torch.testing.assert_close(same, scales)
    assert not unpack(numbers, scales)[2].any()


def test_the_library_unpacks_what_we_packed_and_packs_the_same() -> None:
    weight = drawn(12, 32)
    packed, scale, shape = (tensor for _, tensor in to_disk("x.weight", weight))
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(**CONFIG["config_groups"]["group_0"]["weights"])
    )
    state = {"weight_packed": packed, "weight_scale": scale, "weight_shape": shape}
    assert torch.equal(
        PackedQuantizationCompressor.decompress(state, scheme)["weight"], unpack(*from_disk(packed, scale))
    )
    theirs = PackedQuantizationCompressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    assert torch.equal(theirs["weight_packed"], packed)


@pytest.mark.parametrize("case", CASES)
def test_a_packed_checkpoint_is_smaller_and_loads_here_and_in_transformers_with_equal_logits(
    case: str, tmp_path: Path
) -> None:
    model = decoder(case)
    save_model(model, tmp_path / "whole")
    save_model(model, tmp_path / "packed", packed=True)
    loaded = load_model(tmp_path / "packed")
    for (name, was), now in zip(model.named_parameters(), loaded.parameters(), strict=True):
        if name.endswith(("_proj.weight", "_with_mqa.weight", "_proj")):
            bound = was.detach().abs().amax(-1, keepdim=True) / 254 * 1.001
            assert ((was - now).abs() <= bound).all()
            assert not torch.equal(was, now)
        else:
            assert torch.equal(was, now), name
    ours = logits(loaded)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32).eval()
    tokens = torch.randint(0, 61, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
    for own, part in zip(ours.split(LENGTHS), tokens.split(LENGTHS), strict=True):
        with torch.no_grad():
            found = theirs(input_ids=part[None]).logits[0]
        torch.testing.assert_close(own, found, atol=1e-4, rtol=1e-4)


def test_routers_embeddings_and_norms_are_not_packed() -> None:
    names = {
        "model.embed_tokens.weight": False,
        "lm_head.weight": False,
        "model.layers.1.mlp.gate.weight": False,
        "model.layers.1.mlp.experts.10.gate_proj.weight": True,
        "model.layers.1.mlp.shared_experts.down_proj.weight": True,
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": True,
    }
    assert {name: is_packed(name, drawn(4, 4)) for name in names} == names
    assert not is_packed("model.layers.0.self_attn.q_proj.bias", torch.zeros(4))


def test_what_does_not_fit_or_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.weight: has rows of 6 numbers: must be a multiple of 4"):
        list(to_disk("x.weight", drawn(2, 6)))
    save_model(decoder("llama-grouped"), tmp_path / "packed", packed=True)
    path = tmp_path / "packed" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"quantization_config = .*must be pack-quantized with int8 weights"):
        load_model(tmp_path / "packed")


def test_a_packed_tensor_without_its_scale_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(decoder("llama-grouped"), tmp_path / "packed", packed=True)
    file = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj" + packed_int8.SCALE]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"up_proj.weight_packed without .*up_proj.weight_scale"):
        load_model(tmp_path / "packed")
