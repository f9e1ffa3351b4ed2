"""Prompts as numbers to count with: hashed words, n-grams of them, and the numbers that occur.

Everything works on a whole batch at once. A ragged batch is a flat array of values and the offsets of its rows: row i
is `values[offsets[i] : offsets[i + 1]]`. Hashes are Polars' 64-bit ones: the same for one version of Polars.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKEN = (
    rf"\d+(?:\.\d+)?|[\p{{L}}--[{_UNSPACED}]]+|[\p{{L}}&&[{_UNSPACED}]]"
    r"|[^\s\p{L}\p{N}.,;:!?\"'。、「」]"
)
"""A number, a word, or a sign; where words have no blanks between them, a character. Punctuation does not count: it
differs between copies of one text."""

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_UNITS.split())} | {
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "sixty": "60",
    "seventy": "70",
    "eighty": "80",
    "ninety": "90",
    "hundred": "100",
    "thousand": "1000",
    "million": "1000000",
    "dozen": "12",
    "half": "1/2",
    "third": "1/3",
    "quarter": "1/4",
    "once": "1",
    "twice": "2",
    "double": "2",
    "triple": "3",
}
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\b(?:" + "|".join(_NUMBER_WORDS) + r")\b"

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it is zero
_SHIFT = np.uint64(29)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Ragged:
    """Rows of different length: `values` (V,) and `offsets` (rows + 1,)."""

    values: Hashes
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def rows(self) -> NDArray[np.int64]:
        """For every value the row that it belongs to: (V,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)


def numbers(normalised: pl.Series) -> pl.Series:
    """The numbers of every text in order, as a list of texts: `1,000` as `1000`, English number words as digits."""
    found = normalised.str.extract_all(_NUMBER)
    return found.list.eval(pl.element().str.replace_all(",", "", literal=True).replace(_NUMBER_WORDS))


def words(normalised: pl.Series) -> Ragged:
    """Hashed words. A text without any is one word of its own, so that it is like nothing else."""
    table = pl.DataFrame({"text": normalised, "words": normalised.str.extract_all(_TOKEN)})
    alone = pl.concat_list("text")
    return ragged(table.select(pl.when(pl.col("words").list.len() == 0).then(alone).otherwise("words")).to_series())


def ragged(lists: pl.Series) -> Ragged:
    """Hashes of a column of lists of texts."""
    offsets = np.concatenate([[0], np.cumsum(lists.list.len().to_numpy(), dtype=np.int64)])
    return Ragged(lists.explode(empty_as_null=False).hash().to_numpy(), offsets)


def sequence_hashes(sequences: Ragged) -> Hashes:
    """One hash per row for its values in their order; 0 for an empty row."""
    position = np.arange(len(sequences.values)) - sequences.offsets[:-1].repeat(sequences.lengths)
    terms = mix(sequences.values) * _powers(int(sequences.lengths.max(initial=0)))[position]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])
    return sums[sequences.offsets[1:]] - sums[sequences.offsets[:-1]]


def ngrams(sequences: Ragged, size: int) -> Ragged:
    """Hashes of the runs of `size` values, in order; a row that is shorter is one run. No row may be empty."""
    lengths = sequences.lengths
    assert (lengths > 0).all()
    count = np.maximum(lengths - size + 1, 1)
    offsets = np.concatenate([[0], np.cumsum(count)])
    starts = np.arange(offsets[-1]) + np.repeat(sequences.offsets[:-1] - offsets[:-1], count)
    short = lengths < size
    values = mix(np.concatenate([sequences.values, np.zeros(size, np.uint64)]))
    runs = np.zeros(len(starts), np.uint64)
    for step, power in enumerate(_powers(size)):
        runs += values[starts + step] * power
    runs[offsets[:-1][short]] = sequence_hashes(sequences)[short]
    return Ragged(mix(runs), offsets)


def _powers(count: int) -> Hashes:
    """The first `count` powers of the base: the weight of a value by its place."""
    return np.cumprod(np.full(count, _BASE), dtype=np.uint64)


def mix(values: Hashes) -> Hashes:
    """Spread the bits of sums and products over the whole word (a step of splitmix64)."""
    values = (values ^ (values >> _SHIFT)) * _MIX
    return values ^ (values >> _SHIFT)
