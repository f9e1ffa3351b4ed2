"""What config.json says of a checkpoint whose matrices are packed as int8. Without torch: configs are read without it.

See `packed_int8` for the layout itself.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import InputError

CONFIG: Mapping[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
        }
    },
    "ignore": ["lm_head", "re:.*mlp.gate$"],
}
"""What config.json says under `quantization_config`."""


def require_layout(source: object, raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a packed checkpoint. Raises InputError for any other kind of quantisation."""
    found = raw.get("quantization_config")
    if found is None:
        return False
    weights = [group.get("weights") for group in found.get("config_groups", {}).values()]
    ours = CONFIG["config_groups"]["group_0"]["weights"]
    same = len(weights) == 1 and {key: (weights[0] or {}).get(key) for key in ours} == ours
    if found.get("format") != CONFIG["format"] or not same:
        raise InputError(
            f"{source}: quantization_config = {found!r:.200}: must be {CONFIG['format']} with int8 weights, symmetric, "
            "one scale per channel; nothing else is supported"
        )
    return True
