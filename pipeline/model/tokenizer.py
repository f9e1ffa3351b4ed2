"""Tokenizers: the character tokenizer of the embedded recipe, and reading and writing of any fast tokenizer.

A tokenizer is data here, tokenizer.json and its configuration. No tokenizer class of a checkpoint is looked up, so no
code from it can run, and nothing is ever fetched.
"""

import string
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.errors import InputError

ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
MARKS = ("<think>", "</think>", "<answer>", "</answer>")
SPECIAL = ("<pad>", "<bos>", "<eos>", *ROLES, *MARKS)
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"


def character_tokenizer(chat_template: str) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character and newline, and the special tokens; any other character is <pad>."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<pad>",
        additional_special_tokens=[*ROLES, *MARKS],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a checkpoint folder with its chat template; raises InputError if it has none."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder / 'tokenizer.json'}: not found: a model folder must have a fast tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path | str) -> None:
    """Write the tokenizer and its chat template into a checkpoint folder, beside what is there."""
    tokenizer.save_pretrained(Path(folder))
