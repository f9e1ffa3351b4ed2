"""Decoders as Hugging Face checkpoints: config.json, generation_config.json and *.safetensors, sharded or not.

In memory the experts of a layer are one tensor, and gate and up projections one matrix; on disk each is apart, as
transformers, vLLM and llama.cpp expect. `disk_tensors` lays the disk names over views of the parameters, and serves
both ways. Only safetensors are read, so nothing in a checkpoint can run; every tensor must be there, expected and of
the right shape. Matrices may be packed as int8 (packed_int8); to answer, experts can stay in the file (stored).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.files import atomic_folder, write_json
from pipeline.model import packed_int8, packed_layout
from pipeline.model.adapter import Merged, is_adapted
from pipeline.model.adapter_files import ADAPTER, save_adapter
from pipeline.model.checkpoint_files import GENERATION, INDEX, SINGLE, Tensors, read_config
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.experts import Experts, MixtureOfExperts
from pipeline.model.stored import Stored, StoredExpert, StoredExperts

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# The longest list of tensor names that a message shows.
SHOWN = 5


@torch.no_grad()
def load_model(folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
    """Read a checkpoint folder; raises InputError that names the file and what is wrong with it.

    What is packed as int8 is unpacked.
    """
    folder = Path(folder)
    raw = read_config(folder)
    with torch.device("meta"):
        model = Decoder(ModelConfig.from_hf(raw))
    take_memory(model.cast(dtype), device)
    with Tensors(folder, raw) as tensors:
        _fill(model, folder, tensors, disk_tensors(model))
    return model


def take_memory(model: nn.Module, device: torch.device | str) -> None:
    """Give a model that was made on the meta device memory of its own; what is in it is undefined, as of `to_empty`.

    That one costs a second the first time, as torch makes tensors like meta ones by way of Python.
    """
    held = {name: torch.empty(held.shape, dtype=held.dtype, device=device) for name, held in model.state_dict().items()}
    model.load_state_dict(held, assign=True)


@torch.no_grad()
def load_to_answer(folder: Path | str, *, mapped: bool = False, hot: Sequence[Collection[int]] = ()) -> Decoder:
    """The same, in float32 on the CPU, but for the routed experts: packed ones stay packed.

    `mapped`: the experts stay in the file, but for the `hot` ones, whose numbers each mixture layer's entry lists.
    """
    folder = Path(folder)
    raw = read_config(folder)
    if not mapped and not packed_layout.require_layout(folder / "config.json", raw):
        return load_model(folder)
    with torch.device("meta"):
        model = Decoder(ModelConfig.from_hf(raw))
    slots = disk_tensors(model)
    mixtures = {path: part for path, part in model.named_modules() if isinstance(part, MixtureOfExperts)}
    with Tensors(folder, raw) as tensors:
        for number, (path, part) in enumerate(mixtures.items()):
            prefix, count = f"model.{path}.experts", part.gate.mixture.experts
            experts = [_stored_expert(folder, tensors, slots, f"{prefix}.{expert}") for expert in range(count)]
            in_memory = hot[number] if mapped and number < len(hot) else () if mapped else range(count)
            part.experts = StoredExperts(experts, frozenset(in_memory))
        take_memory(model, "cpu")
        _fill(model, folder, tensors, disk_tensors(model), elsewhere=slots.keys() - disk_tensors(model).keys())
    return model


def _stored_expert(folder: Path, tensors: Tensors, slots: Mapping[str, Tensor], prefix: str) -> StoredExpert:
    parts = []
    for kind in ("gate_proj", "up_proj", "down_proj"):
        name = f"{prefix}.{kind}.weight"
        if name not in tensors:
            _check_names(folder, [name], [])
        stored = tensors.stored(name)
        _check(folder, name, stored, slots[name])
        as_it_is = stored.scales is not None or stored.numbers.dtype == torch.float32
        parts.append(stored if as_it_is else Stored(stored.numbers.float(), None))
    return StoredExpert(*parts)


def _fill(
    model: Decoder, folder: Path, tensors: Tensors, slots: Mapping[str, Tensor], elsewhere: Collection[str] = ()
) -> None:
    """Copy the file's tensors into `slots`, all of them but those that are `elsewhere`."""
    unexpected, head = [], None
    for name in tensors:
        if name in slots:
            stored = tensors.stored(name)
            _check(folder, name, stored, slots[name])
            slots[name].copy_(stored.unpacked())
        elif name == "lm_head.weight":
            head = tensors.stored(name).unpacked()
        elif name not in elsewhere and not _is_known_extra(name, tensors.config):
            unexpected.append(name)
    _check_names(folder, [name for name in slots if name not in tensors], unexpected)
    dtype = model.unembedding.dtype
    if head is not None and not torch.equal(head.to(dtype), model.unembedding.cpu()):
        raise InputError(f"{folder}: lm_head.weight is not the embedding: must be, as tie_word_embeddings = true")


def save_model(model: Decoder, folder: Path | str, max_shard_bytes: int = 5 * 10**9, *, packed: bool = False) -> None:
    """Write a checkpoint folder whole, in place of what was there, in shards of at most `max_shard_bytes`.

    `packed`: the matrices of the blocks as int8, in the layout of packed_int8. An adapter is merged into the weights,
    and lies beside them in `ADAPTER`.
    """
    with atomic_folder(Path(folder)) as temporary:
        if is_adapted(model):
            save_adapter(model, temporary / ADAPTER)
            model = Merged(model).decoder
        config = model.config.to_hf() | {"dtype": str(model.embed_tokens.weight.dtype).removeprefix("torch.")}
        if packed:
            config["quantization_config"] = dict(packed_layout.CONFIG)
        write_json(temporary / "config.json", config)
        special = {key: config[key] for key in SPECIAL_TOKENS if config[key] is not None}
        write_json(temporary / GENERATION, special)
        tensors = disk_tensors(model)
        shards = _shards(_packed(tensors) if packed else tensors, max_shard_bytes)
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
    assert not is_adapted(model), "a checkpoint has no place for an adapter"
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


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found |= packed_int8.to_disk(name, tensor) if packed_int8.is_packed(name, tensor) else {name: tensor}
    return found


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


def _check(folder: Path, name: str, stored: Stored, slot: Tensor) -> None:
    if stored.numbers.shape != slot.shape:
        shape = list(stored.numbers.shape)
        raise InputError(f"{folder}: {name} has shape {shape}: must be {list(slot.shape)} by config.json")
    if stored.scales is not None and len(stored.scales) != len(slot):
        raise InputError(f"{folder}: {name} has {len(stored.scales)} scales: must be {len(slot)}, one for each row")
    if stored.scales is None and stored.numbers.dtype not in DTYPES:
        raise InputError(f"{folder}: {name} is {stored.numbers.dtype}: must be float32, float16 or bfloat16")


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
