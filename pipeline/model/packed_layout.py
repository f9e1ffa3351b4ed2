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
    if not _is_ours(found):
        raise InputError(
            f"{source}: quantization_config = {found!r:.200}: must be {CONFIG['format']} with int8 weights, symmetric, "
            "one scale per channel, activations and cache as they are; nothing else is supported"
        )
    return True


def _is_ours(found: Any) -> bool:
    groups = found.get("config_groups") if isinstance(found, dict) else None
    if not isinstance(groups, dict) or len(groups) != 1:
        return False
    [group] = groups.values()
    weights = group.get("weights") if isinstance(group, dict) else None
    ours = CONFIG["config_groups"]["group_0"]["weights"]
    return (
        found.get("format") == CONFIG["format"]
        and isinstance(weights, dict)
        and {key: weights.get(key) for key in ours} == ours
        and not group.get("input_activations")
        and not found.get("kv_cache_scheme")
    )
