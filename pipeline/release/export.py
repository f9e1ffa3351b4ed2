"""A model as files that any program of the Hugging Face world reads and samples from as we do.

Different from a stage's `model/`: the tokens that begin, end and pad a text stand in config.json, and
generation_config.json holds the sampler that the model was evaluated with, so nobody has to be told either; and a
tokenizer of characters is written as bytes, which other programs cannot read in a way of their own.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from pipeline.files import write_json
from pipeline.generation.engine import end_tokens
from pipeline.model.checkpoint import save_model
from pipeline.model.checkpoint_files import GENERATION
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import portable, save_tokenizer
from pipeline.params import Sampling


def export(
    model: Decoder, tokenizer: PreTrainedTokenizerFast, sampling: Sampling, folder: Path, *, packed: bool = False
) -> None:
    """Write weights, configuration, tokenizer, chat template and sampler to `folder`, in place of what was there.

    `packed`: matrices as int8.
    """
    save_model(model, folder, packed=packed)
    save_tokenizer(portable(tokenizer), folder)
    special = _special_tokens(model, tokenizer)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | special)
    write_json(folder / GENERATION, special | generation_config(sampling))


def _special_tokens(model: Decoder, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Ids under the names of config.json; None where there is no such token."""
    ends = sorted(end_tokens(model, tokenizer))
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad_token_id,
    }


def generation_config(sampling: Sampling) -> dict[str, Any]:
    """The sampler as generation_config.json says it; where a key is absent its readers have defaults of their own."""
    config: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "do_sample": sampling.temperature > 0}
    if config["do_sample"]:
        # 0 is "all" to transformers and vLLM alike; without it transformers would take the 50 likeliest tokens.
        config |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or 0}
        if sampling.min_p:
            config["min_p"] = sampling.min_p
    if sampling.stop:
        config["stop_strings"] = list(sampling.stop)
    return config


def read_sampling(folder: Path) -> Sampling:
    """The sampler of a release, as `generation_config` has written it."""
    config = json.loads((folder / GENERATION).read_text(encoding="utf-8"))
    drawn = config["do_sample"]
    return Sampling(
        temperature=config["temperature"] if drawn else 0.0,
        top_p=config["top_p"] if drawn else 1.0,
        top_k=config["top_k"] or None if drawn else None,
        min_p=config.get("min_p", 0.0),
        stop=config.get("stop_strings", []),
        max_new_tokens=config["max_new_tokens"],
    )
