"""Preference pairs as tokens: who is kept out of training, who trains which model, and which pairs a step sees.

Length must not stand in for quality. The longer answer is the chosen one in some pairs and the rejected one in others,
and where one kind is more frequent a model learns length. So an epoch holds as many pairs of one kind as of the other:
all of the more frequent kind once, the rarer ones again until they are as many. Pairs of equal length come once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.errors import InputError
from pipeline.records import is_held_out, normalise, prompt_hash


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two answers to a prompt, each with the prompt before it, as tokens."""

    chosen: np.ndarray  # (n,) int64
    rejected: np.ndarray  # (m,) int64

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)

    @property
    def longer(self) -> int:
        """Tokens by which the chosen answer is longer."""
        return len(self.chosen) - len(self.rejected)


@dataclass(frozen=True, slots=True)
class Split:
    """Pairs apart by their prompts' hashes, so that no prompt is in two parts."""

    held_out: list[Pair]  # trained on by nobody
    first: list[Pair]  # for the preference model
    second: list[Pair]  # for its witness


def encode_pairs(tokenizer: PreTrainedTokenizerFast, pairs: pl.DataFrame) -> list[Pair]:
    """From a table of PreferencePairs, in its order. An answer has no thinking before it: pairs come without."""
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    texts = [
        chat.render_prompt(prompt, bos=bos) + chat.render_completion("", answer, eos=eos)
        for prompt, *answers in pairs.select("prompt", "chosen", "rejected").iter_rows()
        for answer in answers
    ]
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    tokens = [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]
    return [Pair(*both) for both in zip(tokens[::2], tokens[1::2], strict=True)]


def split_pairs(
    tokenizer: PreTrainedTokenizerFast, pairs: pl.DataFrame, seed: int, held_out: float, room: int
) -> Split:
    """Share `held_out` for measuring, the rest in two halves.

    Raises InputError where a part would be empty, and for a text of more tokens than `room`, the model's
    max_position_embeddings.
    """
    split = Split([], [], [])
    for prompt, pair in zip(pairs["prompt"], encode_pairs(tokenizer, pairs), strict=True):
        if (longest := max(len(pair.chosen), len(pair.rejected))) > room:
            raise InputError(
                f"preference: a pair has an answer of {longest} tokens with its prompt {prompt[:60]!r}: must be at "
                f"most the model's max_position_embeddings = {room}; curation.limits bounds what is long"
            )
        if is_held_out(prompt, seed, held_out):
            split.held_out.append(pair)
        elif prompt_hash(f"half {normalise(prompt)}", seed) % 2:
            split.first.append(pair)
        else:
            split.second.append(pair)
    if not (split.held_out and split.first and split.second):
        raise InputError(
            f"preference: {len(pairs)} pairs: too few to train two models and to measure them with held_out "
            f"{held_out:g}; bring more pairs"
        )
    return split


class BalancedPairs:
    """The pairs of every training step: a function of (pairs, seed, step) alone."""

    def __init__(self, pairs: Sequence[Pair], pairs_per_step: int, seed: int) -> None:
        kinds = np.sign([pair.longer for pair in pairs])
        self._longer, self._shorter, self._even = (np.flatnonzero(kinds == kind) for kind in (1, -1, 0))
        if (len(self._longer) == 0) != (len(self._shorter) == 0):
            kind = "longer" if len(self._longer) else "shorter"
            raise InputError(
                f"preference: wherever lengths differ among the {len(pairs)} pairs to train on, the chosen answer is "
                f"the {kind} one: a model would learn length; bring pairs of both kinds"
            )
        self._pairs = pairs
        self._count = pairs_per_step
        self._seed = seed
        self._size = 2 * max(len(self._longer), len(self._shorter)) + len(self._even)
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        """Pairs of an epoch."""
        return self._size

    def __getitem__(self, step: int) -> list[Pair]:
        places = range(step * self._count, (step + 1) * self._count)
        return [self._pairs[self._epoch(place // self._size)[place % self._size]] for place in places]

    def _shuffle(self, epoch: int) -> list[int]:
        rng = np.random.default_rng([self._seed, epoch])
        most = max(len(self._longer), len(self._shorter))
        # Of the rarer kind an epoch repeats others than the one before: what is repeated once more is drawn anew.
        kinds = [np.resize(rng.permutation(kind), most) for kind in (self._longer, self._shorter) if len(kind)]
        return rng.permutation(np.concatenate([*kinds, self._even])).tolist()
