"""DeepSpeed's base configuration: the files of infra/deepspeed/, which must leave to params.yaml what that decides."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.params import Distributed

CONFIGS = Path(__file__).parents[2] / "infra" / "deepspeed"
OURS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,  # in sequences; ours are cut by tokens
    "train_batch_size": None,
    "gradient_accumulation_steps": 1,
    "managed_gradient_accumulation": False,  # a step ends when `step` is called
    "gradient_clipping": 0.0,  # the optimiser clips on its way
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "zero_allow_untested_optimizer": True,  # ours is torch's, by another name
    "zero_force_ds_cpu_optimizer": False,  # which would have to be compiled
    "optimizer": None,
    "scheduler": None,
    "fp16": None,
    "bf16": None,
    "torch_autocast": None,
}
"""What DeepSpeed's configuration may not say by itself."""


def base_config(options: Distributed) -> dict[str, Any]:
    """The files of infra/deepspeed/ for these options. Raises InputError where one sets what params decide."""
    names = [f"zero{options.zero}"] + ([] if options.offload == "none" else [f"offload_{options.offload}"])
    config: dict[str, Any] = {}
    for name in names:
        path = CONFIGS / f"{name}.json"
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as JSON: {error}") from error
        zero = read.pop("zero_optimization", {})
        for key in sorted((read.keys() & OURS.keys()) | (zero.keys() & {"stage"})):
            raise InputError(f"{path}: {key}: must not be set here: params.yaml decides it")
        config["zero_optimization"] = config.get("zero_optimization", {}) | zero
        config |= read
    return config
