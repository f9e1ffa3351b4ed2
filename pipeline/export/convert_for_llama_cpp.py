"""Convert a release of r1flow for llama.cpp: its own converter, told which tokenizer it has before it.

    python convert_for_llama_cpp.py LLAMA_CPP RELEASE [options of convert_hf_to_gguf.py, as --outfile, --outtype]

LLAMA_CPP is a checkout of llama.cpp with the requirements of its converter installed. It knows tokenizers by a hash of
what they make of one text, and refuses those that it has not seen. Ours are two, byte pairs that keep digits single and
characters as bytes without a merge; it has a way to read them, under another model's name. A character outside of
ASCII, one unknown token to the second kind, is dropped by llama.cpp. Every other tokenizer is left to the converter.

This file needs nothing of r1flow.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

OURS = ("<|system|>", "<|user|>", "<|assistant|>", "<think>", "</think>", "<answer>", "</answer>")
SAID = OURS[3:]  # tokens that are written out where a model says them
SPLITS = "smollm"  # llama.cpp's name for: each digit alone, then as GPT-2 splits a text
NEVER = "\u0100 \u0100"  # a merge of two bytes 0: llama.cpp wants a list of merges that is not empty


def with_vocabulary(model: type[Any], folder: Path) -> type[Any]:
    """The converter's class for a model, with the release's own vocabulary where that is one of ours."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    if not special.keys() >= set(OURS):
        return model
    gguf: Any = importlib.import_module("gguf")
    ids = tokenizer["model"]["vocab"] | special
    tokens = sorted(ids, key=lambda token: ids[token])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]] or [NEVER]

    def set_vocab(self: Any) -> None:
        writer, kinds = self.gguf_writer, gguf.TokenType
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(SPLITS)
        writer.add_token_list(tokens)
        kind = dict.fromkeys(special, kinds.CONTROL) | dict.fromkeys(SAID, kinds.USER_DEFINED)
        writer.add_token_types([kind.get(token, kinds.NORMAL) for token in tokens])
        writer.add_token_merges(merges)
        writer.add_add_bos_token(False)  # the chat template writes it
        if self.hparams.get("kv_lora_rank") and not self.hparams.get("q_lora_rank"):
            writer.add_q_lora_rank(0)  # llama.cpp asks for it, but for the layer counts of models that it knows
        gguf.SpecialVocab(folder, load_merges=False).add_to_gguf(writer)

    model.set_vocab = set_vocab
    return model


def main() -> None:
    llama_cpp, release, *options = sys.argv[1:]
    sys.path[:0] = [llama_cpp, str(Path(llama_cpp) / "gguf-py")]
    converter: Any = importlib.import_module("convert_hf_to_gguf")
    find = converter.get_model_class
    converter.get_model_class = lambda *names, **more: with_vocabulary(find(*names, **more), Path(release))
    sys.argv = ["convert_hf_to_gguf.py", release, *options]
    converter.main()


if __name__ == "__main__":
    main()
