"""Decoders as Hugging Face checkpoints: config.json, generation_config.json and *.safetensors, sharded or not.

In memory the experts of a layer are one tensor, and gate and up projections one matrix; on disk each is apart, as
transformers, vLLM and llama.cpp expect. `disk_tensors` lays the disk names over views of the parameters, and serves
both ways. Only safetensors are read, so nothing in a checkpoint can run; every tensor must be there, expected and of
the right shape.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.files import atomic_folder, write_json
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.experts import Experts

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# The longest list of tensor names that a message shows.
SHOWN = 5


@torch.no_grad()
def load_model(folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
    """Read a checkpoint folder; raises InputError that names the file and what is wrong with it."""
    folder = Path(folder)
    raw = _read_json(folder / "config.json")
    if (folder / GENERATION).is_file():  # where both say what ends a completion, this one is meant: chat models differ
        raw |= {"eos_token_id": _read_json(folder / GENERATION).get("eos_token_id", raw.get("eos_token_id"))}
    with torch.device("meta"):
        model = Decoder(ModelConfig.from_hf(raw))
    take_memory(model.cast(dtype), device)
    slots = disk_tensors(model)
    found: set[str] = set()
    unexpected: list[str] = []
    head = None
    for name, tensor in _read_tensors(folder):
        if name in slots:
            _check(folder, name, tensor, slots[name])
            slots[name].copy_(tensor)
            found.add(name)
        elif name == "lm_head.weight":
            head = tensor
        elif not _is_known_extra(name, raw):
            unexpected.append(name)
    _check_names(folder, [name for name in slots if name not in found], unexpected)
    if head is not None and not torch.equal(head.to(dtype), model.unembedding.cpu()):
        raise InputError(f"{folder}: lm_head.weight is not the embedding: must be, as tie_word_embeddings = true")
    return model


def take_memory(model: nn.Module, device: torch.device | str) -> None:
    """Give a model that was made on the meta device memory of its own; what is in it is undefined, as of `to_empty`.

    That one costs a second the first time, as torch makes tensors like meta ones by way of Python.
    """
    held = {name: torch.empty(held.shape, dtype=held.dtype, device=device) for name, held in model.state_dict().items()}
    model.load_state_dict(held, assign=True)


def save_model(model: Decoder, folder: Path | str, max_shard_bytes: int = 5 * 10**9) -> None:
    """Write a checkpoint folder whole, in place of what was there, in shards of at most `max_shard_bytes`."""
    with atomic_folder(Path(folder)) as temporary:
        config = model.config.to_hf() | {"dtype": str(model.embed_tokens.weight.dtype).removeprefix("torch.")}
        write_json(temporary / "config.json", config)
        special = {key: config[key] for key in SPECIAL_TOKENS if config[key] is not None}
        write_json(temporary / GENERATION, special)
        shards = _shards(disk_tensors(model), max_shard_bytes)
        names = (
            [SINGLE]
            if len(shards) == 1
            else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        )
        for name, shard in zip(names, shards, strict=True):
            # Copies, because safetensors refuses tensors that share a storage, as the views of one parameter do.
            copies = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in shard.items()}
            save_file(copies, temporary / name, metadata={"format": "pt"})
        if len(shards) > 1:
            total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
            weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
            write_json(temporary / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


@torch.no_grad()
def disk_tensors(model: Decoder) -> dict[str, Tensor]:
    """Every tensor of the checkpoint under its name on disk, as a view of the model's own memory."""
    views: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        prefix = path if path.startswith("lm_head") else f"model.{path}" if path else "model"
        if isinstance(module, Experts):
            for expert, (gate_up, down) in enumerate(zip(module.gate_up_proj, module.down_proj, strict=True)):
                gate, up = gate_up.chunk(2)
                for name, view in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
                    views[f"{prefix}.{expert}.{name}.weight"] = view
        elif path.endswith(".gate_up_proj"):
            for kind, tensor in module.named_parameters():
                gate, up = tensor.chunk(2)
                views[f"{prefix.removesuffix('gate_up_proj')}gate_proj.{kind}"] = gate
                views[f"{prefix.removesuffix('gate_up_proj')}up_proj.{kind}"] = up
        else:
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            views |= {f"{prefix}.{name}": tensor for name, tensor in own}
    return views


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Fill shards in the model's order; a tensor larger than a shard gets one of its own."""
    shards: list[dict[str, Tensor]] = [{}]
    room = max_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: not found: a model folder must have it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is a {type(content).__name__}: must be a JSON object")
    return content


def _read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise InputError(f"{file}: is not a whole safetensors file ({error})") from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise InputError(f"{folder / INDEX}: weight_map must be an object from tensor to file name")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise InputError(f"{folder / INDEX}: names {name}: must be a file beside it")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
    if pickles:
        raise InputError(f"{folder}: has only {pickles[0]}: a pickle can run code, must be safetensors")
    raise InputError(f"{folder}: has neither {SINGLE} nor {INDEX}")


def _check(folder: Path, name: str, tensor: Tensor, slot: Tensor) -> None:
    if tensor.shape != slot.shape:
        raise InputError(f"{folder}: {name} has shape {list(tensor.shape)}: must be {list(slot.shape)} by config.json")
    if tensor.dtype not in DTYPES:
        raise InputError(f"{folder}: {name} is {tensor.dtype}: must be float32, float16 or bfloat16")


def _check_names(folder: Path, missing: list[str], unexpected: list[str]) -> None:
    complaints = [
        f"{len(names)} {label} ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for names, label in ((missing, "missing"), (unexpected, "unexpected"))
        if names
    ]
    if complaints:
        raise InputError(f"{folder}: tensors {' and '.join(complaints)}: must be exactly those of its config.json")


def _is_known_extra(name: str, raw: Mapping[str, Any]) -> bool:
    """Rotary tables that old checkpoints carry, and the multi-token prediction layers behind DeepSeek-V3's last."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    extra = raw.get("num_nextn_predict_layers") or 0
    return layer is not None and 0 <= int(layer[1]) - raw["num_hidden_layers"] < extra
