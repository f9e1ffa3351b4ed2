"""Convert a release of r1flow for llama.cpp: its own converter, told which tokenizer it has before it.

    python convert_for_llama_cpp.py LLAMA_CPP RELEASE [options of convert_hf_to_gguf.py, as --outfile, --outtype]

LLAMA_CPP is a checkout of llama.cpp with the requirements of its converter installed. It knows tokenizers by a hash of
what they make of one text, and refuses those that it has not seen. Ours are two: byte pairs that keep digits single,
which it has under another model's name, and single characters. These are byte pairs without any merge: every byte of
ASCII stays what it is. A character outside of ASCII, <pad> to us, is dropped by llama.cpp.

This file needs nothing of r1flow.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

SPLITS = "smollm"  # llama.cpp's name for: each digit alone, then as GPT-2 splits a text
MARKS = ("<think>", "</think>", "<answer>", "</answer>")
NEVER = "\u0100 \u0100"  # a merge of two bytes 0: llama.cpp wants a list of merges that is not empty


def vocabulary(tokenizer: dict[str, Any]) -> tuple[list[str], list[bool], list[str]]:
    """Of a tokenizer.json: tokens by their ids, as bytes are written; which are special; merges."""
    model, special = tokenizer["model"], {token["content"] for token in tokenizer["added_tokens"]}
    ids = model["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=lambda token: ids[token])
    if model["type"] == "WordLevel":
        # The visible characters of ASCII stand for themselves, the others for code points above 255.
        written = [token if token in special else token.translate({32: "\u0120", 10: "\u010a"}) for token in tokens]
        return written, [token in special for token in tokens], [NEVER]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return tokens, [token in special for token in tokens], merges


def with_vocabulary(model: type[Any], folder: Path) -> type[Any]:
    """The converter's class for a model, with the release's own vocabulary."""
    gguf: Any = importlib.import_module("gguf")
    tokens, special, merges = vocabulary(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))

    def set_vocab(self: Any) -> None:
        writer, kinds = self.gguf_writer, gguf.TokenType
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(SPLITS)
        writer.add_token_list(tokens)
        read = {False: kinds.CONTROL, True: kinds.USER_DEFINED}  # the latter are written out when a model says them
        writer.add_token_types(
            [read[token in MARKS] if one else kinds.NORMAL for token, one in zip(tokens, special, strict=True)]
        )
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
