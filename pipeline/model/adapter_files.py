"""An adapter as PEFT reads it: adapter_config.json and adapter_model.safetensors.

Where PEFT wraps a module, ours shares its A among matrices that are one in memory; on disk each has its own copy.
PEFT knows routed experts as transformers holds them, all in one parameter, and takes changes of such by
`target_parameters`. In a sparse model it would also take `gate_proj` and its like for experts of old; so there the
dense feed-forwards' matrices are named as parameters, too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.files import write_json
from pipeline.model.adapter import adapted_weights
from pipeline.model.decoder import Decoder

ADAPTER = "adapter"
"""The folder's name in that of the merged model."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def save_adapter(model: Decoder, folder: Path) -> None:
    """Write the adapter of `model` to `folder`, for the checkpoint that its training started from."""
    folder.mkdir()
    tensors = {f"base_model.model.model.{name}.weight": part for name, part in _tensors(model)}
    save_file({name: part.detach().cpu().contiguous() for name, part in tensors.items()}, folder / WEIGHTS)
    write_json(folder / CONFIG, _config(model))


def _tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    for name, _, change in adapted_weights(model):
        path, _, kind = name.rpartition(".")
        if kind == "weight":
            if path.endswith(".gate_up_proj"):
                for half, b in zip(("gate_proj", "up_proj"), change.b.chunk(2), strict=True):
                    prefix = f"{path.removesuffix('gate_up_proj')}{half}"
                    yield f"{prefix}.lora_A", change.a.clone()
                    yield f"{prefix}.lora_B", b.clone()
            else:
                yield f"{path}.lora_A", change.a
                yield f"{path}.lora_B", change.b
        else:
            # PEFT wraps the module once for each parameter, the first one innermost.
            prefix = f"{path}.base_layer" if kind == "gate_up_proj" else path
            yield f"{prefix}.lora_A", change.a.flatten(0, 1)  # (E · r, D)
            yield f"{prefix}.lora_B", change.b.permute(1, 2, 0).flatten(1)  # (O, r · E)


@torch.no_grad()
def _config(model: Decoder) -> dict[str, Any]:
    changes = list(adapted_weights(model))
    _, _, first = changes[0]
    rank = first.a.shape[-2]
    modules: set[str] = set()
    parameters: set[str] = set()
    for name, _, _ in changes:
        *_, part, projection, kind = name.split(".")
        if kind != "weight":
            parameters.add(f"{part}.{projection}.{kind}")
            continue
        for one in ("gate_proj", "up_proj") if projection == "gate_up_proj" else (projection,):
            if model.config.mixture is not None and one in FEED_FORWARD:
                parameters.add(f"{part}.{one}.weight")
            else:
                modules.add(one)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(modules),
        "target_parameters": sorted(parameters) or None,
    }
