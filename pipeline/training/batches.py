"""Which tokens a training step sees: examples, their seeded order, and the flat runs that go through the model.

All epochs' examples laid end to end are one endless line of tokens, and step s trains on the examples that begin in its
window [s·B, (s+1)·B) of the line, B being the token budget. So a step is a function of (examples, seed, s) alone, and
resuming needs no more than the step's number.
Different from the textbook: nothing is padded, and nothing is truncated or cut between examples. A step holds B tokens
on average (no share of the budget is wasted) and exceeds it by less than one example.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.world import deal, world

Item = TypeVar("Item", bound=Sized)
Cut = Callable[[Sequence[Item], int], Iterator[list[Item]]]
"""Makes runs of at most so many tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A training text of n ≥ 2 tokens. The first token is never predicted: nothing stands before it."""

    tokens: np.ndarray  # (n,) int64
    counts: np.ndarray  # (n,) bool: whether predicting the token at this place counts

    def __post_init__(self) -> None:
        assert self.tokens.shape == self.counts.shape, (self.tokens.shape, self.counts.shape)
        assert self.counts[1:].any(), "an example needs a prediction that counts"

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples as one flat run of T tokens, of whose next tokens P count.

    The last token of an example is only predicted: nothing follows that it could predict.
    """

    tokens: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64: place inside the own example, from 0
    lengths: tuple[int, ...]  # tokens of each example in the run; their sum is T
    predictors: Tensor  # (P,) int64: places in the run whose next token counts
    targets: Tensor  # (P,) int64: those next tokens

    def to(self, device: torch.device) -> "Batch":
        tensors = (self.tokens, self.positions, self.predictors, self.targets)
        tokens, positions, predictors, targets = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Batch(tokens, positions, self.lengths, predictors, targets)


def pack(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end."""
    lengths = tuple(len(example) - 1 for example in examples)
    counts = np.concatenate([example.counts[1:] for example in examples])
    return Batch(
        tokens=torch.from_numpy(np.concatenate([example.tokens[:-1] for example in examples])),
        positions=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        lengths=lengths,
        predictors=torch.from_numpy(counts.nonzero()[0]),
        targets=torch.from_numpy(np.concatenate([example.tokens[1:] for example in examples])[counts]),
    )


def runs(items: Sequence[Item], tokens: int) -> Iterator[list[Item]]:
    """Sequences in runs of at most `tokens` tokens; a longer one is a run of its own.

    Those of like length stand together, so that attention finds large groups of them.
    """
    run: list[Item] = []
    size = 0
    for item in sorted(items, key=len):
        if run and size + len(item) > tokens:
            yield run
            run, size = [], 0
        run.append(item)
        size += len(item)
    yield run


def shared_runs(items: Sequence[Item], tokens: int, cut: Cut[Item] = runs) -> list[tuple[list[Item], float]]:
    """This rank's share of a step's sequences, `cut` into runs of at most `tokens`, each with its weight in the step.

    All ranks have to go through the model equally often. One that has less to do makes up for it by runs of weight 0.
    """
    if world().alone:
        return [(run, 1.0) for run in cut(items, tokens)]
    shares = [[items[place] for place in places] for places in deal([len(item) for item in items], world().size)]
    all_runs = [list(cut(share, tokens)) if share else [] for share in shares]
    own, most = all_runs[world().rank], max(map(len, all_runs))
    return [(run, 1.0) for run in own] + [([min(items, key=len)], 0.0)] * (most - len(own))


def micro_batches(examples: Sequence[Example], tokens: int) -> list[tuple[Batch, float]]:
    """This rank's share of a step's examples as the batches that go through the model, each with its weight."""
    return [(pack(run), weight) for run, weight in shared_runs(examples, tokens)]


class Steps:
    """The examples of every training step."""

    def __init__(self, examples: Sequence[Example], tokens_per_step: int, seed: int) -> None:
        if not examples:
            raise InputError("no examples to train on")
        lengths = np.array([len(example) for example in examples])
        if lengths.max() > tokens_per_step:
            raise InputError(
                f"tokens_per_step = {tokens_per_step}: must hold the longest example, which has {lengths.max()} tokens"
            )
        self._examples = examples
        self._lengths = lengths
        self._budget = tokens_per_step
        self._seed = seed
        self._epoch_tokens = int(lengths.sum())
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def __getitem__(self, step: int) -> list[Example]:
        """Examples that begin in this step's window; at least one."""
        start, stop = step * self._budget, (step + 1) * self._budget
        chosen: list[Example] = []
        for epoch in range(start // self._epoch_tokens, (stop - 1) // self._epoch_tokens + 1):
            order, begins = self._epoch(epoch)
            offset = epoch * self._epoch_tokens
            first, last = (bisect_left(begins, bound - offset) for bound in (start, stop))
            chosen.extend(self._examples[index] for index in order[first:last])
        return chosen

    def _shuffle(self, epoch: int) -> tuple[list[int], list[int]]:
        """An epoch's order and the place where each of its examples begins."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))
        ends = np.cumsum(self._lengths[order])
        return order.tolist(), (ends - self._lengths[order]).tolist()
