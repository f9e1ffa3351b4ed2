import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import InputError
from pipeline.model.checkpoint import disk_tensors, load_model, save_model

from .reference import CASES, decoder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    save_model(load_model(folder), folder, max_shard_bytes=20_000)
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only_pickles(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "pytorch_model.bin")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: not found"),
    "config is not JSON": (lambda folder: truncate(folder / "config.json"), "config.json: is not JSON"),
    "config is not UTF-8": (
        lambda folder: (folder / "config.json").write_bytes(b'{"\xff"}'),
        "config.json: is not JSON",
    ),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "is a list: must be a JSON object"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "has neither model.safetensors nor"),
    "only pickles": (only_pickles, "has only pytorch_model.bin: a pickle can run code"),
    "truncated": (lambda folder: truncate(folder / WEIGHTS), "model.safetensors: is not a whole safetensors file"),
    "empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "model.safetensors: is not a whole safetensors file"),
    "huge header": (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 100), "is not a whole safetensors file"),
    "missing": (lambda folder: edit_weights(folder, lambda t: t.pop(NORM)), f"1 missing ({NORM})"),
    "unexpected": (
        lambda folder: edit_weights(folder, lambda t: t.update({"model.extra": torch.zeros(1)})),
        "1 unexpected (model.extra)",
    ),
    "another model's": (lambda folder: edit_config(folder, num_hidden_layers=4), "missing (model.layers.3."),
    "wrong shape": (
        lambda folder: edit_weights(folder, lambda t: t.update({NORM: torch.zeros(31)})),
        f"{NORM} has shape [31]: must be [32]",
    ),
    "wrong type": (
        lambda folder: edit_weights(folder, lambda t: t.update({NORM: torch.zeros(32, dtype=torch.int8)})),
        f"{NORM} is torch.int8",
    ),
    "tied head differs": (
        lambda folder: edit_weights(folder, lambda t: t.update({"lm_head.weight": torch.zeros(61, 32)})),
        "lm_head.weight is not the embedding",
    ),
    "index without map": (lambda folder: edit_index(folder, lambda i: i.pop("weight_map")), "weight_map must be"),
    "shard gone": (
        lambda folder: edit_index(folder, lambda i: i["weight_map"].update({NORM: "gone.safetensors"})),
        "names gone.safetensors",
    ),
    "shard elsewhere": (
        lambda folder: edit_index(folder, lambda i: i["weight_map"].update({NORM: "../elsewhere.safetensors"})),
        "names ../elsewhere.safetensors: must be a file beside it",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_refused_with_its_file_and_reason(kind: str, tmp_path: Path) -> None:
    damage, said = BROKEN[kind]
    save_model(decoder("deepseek-plain"), tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError) as error:
        load_model(tmp_path / "model")
    assert said in str(error.value)
    assert str(tmp_path / "model") in str(error.value)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard", [10**9, 30_000, 1])
def test_what_we_write_we_read_back_bit_for_bit(case: str, shard: int, tmp_path: Path) -> None:
    model = decoder(case)
    for buffer in model.buffers():
        buffer.normal_()
    save_model(model, tmp_path / "model", max_shard_bytes=shard)
    again = load_model(tmp_path / "model")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in (tmp_path / "model").glob("*.safetensors")]
    assert max(sizes) <= max(shard, max(tensor.nbytes for tensor in disk_tensors(model).values()))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        save_model(decoder("qwen3-moe"), tmp_path / name, max_shard_bytes=30_000)
    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "second").iterdir())
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes() for name in files)


def test_reading_casts_but_keeps_the_balancing_bias(tmp_path: Path) -> None:
    model = decoder("deepseek-plain")
    next(model.buffers()).fill_(0.001)
    save_model(model, tmp_path / "model")
    narrow = load_model(tmp_path / "model", dtype=torch.bfloat16)
    assert narrow.unembedding.dtype == torch.bfloat16
    assert torch.equal(next(narrow.buffers()), next(model.buffers()))
    save_model(narrow, tmp_path / "narrow")
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["dtype"] == "bfloat16"


def test_known_extras_of_published_checkpoints_are_passed_over(tmp_path: Path) -> None:
    model = decoder("deepseek-plain")
    save_model(model, tmp_path / "model")
    extras = {
        "lm_head.weight": model.unembedding.detach().clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "model.layers.3.eh_proj.weight": torch.zeros(2),  # multi-token prediction stands behind the last layer
    }
    edit_weights(tmp_path / "model", lambda tensors: tensors.update(extras))
    edit_config(tmp_path / "model", num_nextn_predict_layers=1)
    assert torch.equal(load_model(tmp_path / "model").unembedding, model.unembedding)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(decoder("qwen2-tied"), tmp_path / "model")
    before = (tmp_path / "model" / WEIGHTS).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pipeline.model.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(decoder("qwen2-yarn"), tmp_path / "model")
    assert (tmp_path / "model" / WEIGHTS).read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_the_generation_config_says_what_ends_a_completion(tmp_path: Path) -> None:
    save_model(decoder("qwen2-tied"), tmp_path)
    assert load_model(tmp_path).config.eos_token_id == 2
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert load_model(tmp_path).config.eos_token_id == (7, 2)
    (tmp_path / "generation_config.json").write_text("{}")
    assert load_model(tmp_path).config.eos_token_id == 2
