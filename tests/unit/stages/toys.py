"""Params with the least of everything, for tests of single stages."""

from typing import Any

from pipeline.params import Params

TRAINING = {"steps": 1, "tokens_per_step": 1, "learning_rate": 1e-3}
GRPO = {"steps": 1, "prompts": 1, "group": 2, "max_new_tokens": 1, "learning_rate": 1e-3}
BASE = {"kind": "checkpoint", "source": "model", "digest": "0" * 64}
SECTIONS: dict[str, Any] = {
    "seed": 1,
    "held_out": 0.1,
    "curation": {"sources": [{"kind": "generated", "name": "made", "problems": 200, "families": {"sum": 1.0}}]},
    "base": BASE,
    "cold_start": {"examples": 10, "train": TRAINING},
    "reasoning_rl": {"train": GRPO},
    "rejection_sampling": {"problems": 1, "samples": 1},
    "general_sft": {"train": TRAINING},
    "distillation": {"students": {"little": {"base": BASE, "train": TRAINING}}},
    "preference": {"train": {"steps": 1, "pairs_per_step": 1, "learning_rate": 1e-3}},
    "general_rl": {"train": GRPO | {"prompts": 2}},
    "evaluation": {"problems": 1, "samples": 1},
    "deployment": {"parity": {"problems": 1}},
}


def toy_params(**sections: Any) -> Params:
    """These sections in place of the smallest ones."""
    return Params.model_validate(SECTIONS | sections)
