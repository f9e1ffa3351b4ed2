"""Duplicates among all rows of all sources, found from a few numbers per row.

Exact duplicates have equal normalised prompts; the first one stays. Near duplicates are found by MinHash signatures in
bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3), with two differences from the textbook.
First, only rows of one *block* are compared: the same numbers in the same order and the same gold answer. Two questions
that differ in their numbers are two questions, however alike their words. Second, as most rows are alone in their
block, only the others ever get a signature; it keeps 8 bits per slot (b-bit minwise hashing, Li and König 2010), from
which bands and similarities are both computed.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rensa import RMinHash  # pyrefly: ignore[missing-module-attribute]

from pipeline.data.quarantine import Reason
from pipeline.data.spill import Spill
from pipeline.data.words import Hashes, Ragged, mix, ngrams, words
from pipeline.params import NearDuplicates

Rows = NDArray[np.int64]
Signatures = NDArray[np.uint8]

_BAND = 4
"""Slots per band. With 16 bands, rows of similarity 0.85 share one with probability 0.99999, of 0.5 with 0.64."""

_CHUNK = 65_536

_COLLISION = 1 / 256
"""How often two slots of 8 bits agree by chance."""


def first_equal(keys: Hashes) -> Rows:
    """For every key (N,) the index of its first occurrence."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


def sharing(blocks: Hashes, rows: Rows) -> Rows:
    """Those of `rows`, in order, whose block another of them has too."""
    _, inverse, counts = np.unique(blocks[rows], return_inverse=True, return_counts=True)
    return rows[counts[inverse] > 1]


def signatures(shingles: Ragged, permutations: int) -> Signatures:
    """MinHash signatures (rows, permutations) of rows of hashed shingles."""
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        shingles.values, shingles.offsets.astype(np.uint64), permutations, seed=0
    )
    return (np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, permutations) & 0xFF).astype(np.uint8)


@dataclass(frozen=True)
class Duplicates:
    """For all rows of a spill (N,): the row that each is a duplicate of, or -1; whether exactly; and how similar."""

    originals: Rows
    exact: NDArray[np.bool_]
    similarities: NDArray[np.float64]
    keys: pl.DataFrame  # of the spill

    def details(self, start: int, stop: int) -> dict[Reason, dict[int, str]]:
        """For the rows from `start` to `stop`: by reason, the positions counted from `start`, and what each is like."""
        rows = start + np.flatnonzero(self.originals[start:stop] >= 0)
        places = self.keys[self.originals[rows]].select(
            pl.format("{} {}:{}", pl.col("source").cast(pl.String), pl.col("file").cast(pl.String), "row")
        )
        same_gold = self.keys["block"].gather(rows) == self.keys["block"].gather(self.originals[rows])
        found: dict[Reason, dict[int, str]] = {Reason.EXACT: {}, Reason.NEAR: {}}
        for row, place, same in zip(rows.tolist(), places.to_series(), same_gold, strict=True):
            if self.exact[row]:
                found[Reason.EXACT][row - start] = (
                    f"the same question as {place}{'' if same else ', with another gold answer'}"
                )
            else:
                found[Reason.NEAR][row - start] = f"similarity {self.similarities[row]:.2f} with {place}"
        return found


def find_duplicates(spill: Spill, options: NearDuplicates) -> Duplicates:
    """Exact and near duplicates among the rows of a spill; of equal or alike rows the first one stays."""
    keys = spill.keys()
    blocks = keys["block"].to_numpy()
    first = first_equal(keys["exact"].to_numpy())
    exact = first != np.arange(len(first))
    originals, similarities = np.where(exact, first, -1), np.ones(len(first))
    suspects = sharing(blocks, np.flatnonzero(~exact))
    signed = np.concatenate(
        [np.zeros((0, options.permutations), np.uint8)]
        + [
            signatures(ngrams(words(part["normalised"]), options.shingle_words), options.permutations)
            for part in spill.gather_parts(suspects, ["normalised"])
        ]
    )
    later, earlier, similarity = near_pairs(blocks[suspects], signed, options.similarity)
    originals[suspects[later]] = suspects[earlier]
    similarities[suspects[later]] = similarity
    return Duplicates(originals, exact, similarities, keys)


def near_pairs(blocks: Hashes, signed: Signatures, similarity: float) -> tuple[Rows, Rows, NDArray[np.float64]]:
    """Near duplicates among rows in order, given their blocks (M,) and signatures (M, permutations).

    Returns the rows that are similar enough to an earlier row of their block, that row, and the similarity. It does not
    matter whether the earlier row stays itself: of a chain of copies of copies the first remains.
    """
    earlier, later = _candidates(blocks, signed)
    estimates = np.concatenate(
        [
            np.zeros(0),
            *(
                (signed[earlier[start : start + _CHUNK]] == signed[later[start : start + _CHUNK]]).mean(axis=1)
                for start in range(0, len(earlier), _CHUNK)
            ),
        ]
    )
    estimates = (estimates - _COLLISION) / (1 - _COLLISION)
    near = np.flatnonzero(estimates >= similarity)
    best = near[np.lexsort((earlier[near], -estimates[near], later[near]))]
    best = best[np.unique(later[best], return_index=True)[1]]
    return later[best], earlier[best], estimates[best]


def _candidates(blocks: Hashes, signed: Signatures) -> tuple[Rows, Rows]:
    """Pairs of positions (earlier, later) that share a block and a band.

    Within a bucket every row is paired with the first and with the one before it, not with all: linear in the bucket.
    """
    pairs = []
    for band in np.ascontiguousarray(signed).view(np.uint32).T:
        keys = mix(blocks ^ mix(band.astype(np.uint64)))
        order = np.argsort(keys, kind="stable")
        fresh = np.concatenate([[True], keys[order[1:]] != keys[order[:-1]]])[: len(order)]
        first = order[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))]
        before = np.concatenate([order[:1], order[:-1]])
        pairs += [np.stack([other, order])[:, ~fresh] for other in (first, before)]
    earlier, later = np.unique(np.concatenate(pairs, axis=1), axis=1)
    return earlier, later
