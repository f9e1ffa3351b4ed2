"""Tokenizers: characters, byte pairs trained on a corpus, and reading and writing of any fast tokenizer.

A tokenizer is data here, tokenizer.json and its configuration. No tokenizer class of a checkpoint is looked up, so no
code from it can run, and nothing is ever fetched.
"""

import json
import re
import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
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
    return _fast(backend, chat_template, unk_token="<pad>")


def byte_pair_tokenizer(chat_template: str, texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair vocabulary of `vocabulary` tokens, trained on `texts`; the special tokens are among them.

    Bytes are its smallest pieces, so that there is no unknown character and every text comes back as it was. Digits
    stay single, as in Llama 2 and DeepSeek LLM (arXiv 2401.02954, section 2.1; V3 takes up to three): a number has one
    spelling, its places line up, and a small model learns ten digits, not a thousand numbers. The same texts give the
    same vocabulary.
    Raises InputError where the texts hold too few pairs that occur twice.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    marks = re.compile("|".join(map(re.escape, SPECIAL)))  # the trainer would learn their spelling as if it were text
    backend.train_from_iterator((part for text in texts for part in marks.split(text)), trainer)
    if (size := backend.get_vocab_size()) != vocabulary:
        raise InputError(f"tokenizer.vocabulary: {vocabulary}: the corpus gives {size} tokens; must be at most that")
    return _fast(backend, chat_template)


def portable(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokens in a form that every reader takes for what it is: characters as byte pairs without any merge.

    Readers look at a model's architecture and put their own way of splitting a text in front of the vocabulary, as
    transformers does for qwen2: then a vocabulary of whole characters loses its spaces. One that is written as bytes
    does not, for no split can part or join them. Other tokenizers are given back.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "WordLevel":
        return tokenizer
    characters, byte_level = state["pre_tokenizer"], pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = {token["content"] for token in state["added_tokens"]}
    vocabulary = {
        token if token in special else byte_level.pre_tokenize_str(token)[0][0]: number
        for token, number in state["model"]["vocab"].items()
    }
    # An unknown character of several bytes is one unknown token, as before.
    model = models.BPE(vocabulary, [], unk_token=state["model"]["unk_token"], fuse_unk=True)
    backend = Tokenizer.from_str(json.dumps(state))
    backend.model, backend.decoder = model, decoders.ByteLevel()
    split = pre_tokenizers.Split(Regex(characters["pattern"]["Regex"]), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return _fast(backend, str(tokenizer.chat_template), unk_token=state["model"]["unk_token"])


def _fast(backend: Tokenizer, chat_template: str, **more: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=[*ROLES, *MARKS],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **more,
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
