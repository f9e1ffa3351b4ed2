"""The sequences that are being generated, as columns over the engine's slots.

Different from the textbook: no object per sequence. A step touches every sequence, and a few operations on columns cost
less than a loop over objects. The live sequences are the first rows; where one ends, the last one moves into its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.generation.randomness import sequence_key, uniforms
from pipeline.generation.requests import Request
from pipeline.generation.text import TextStream


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way: which of its samples have started, and what its prompt left behind."""

    index: int
    request: Request
    streamed: bool
    started: int = 0  # samples
    experts: np.ndarray | None = field(default=None, repr=False)  # (p, layers, k) int16 of the prompt, where recorded

    @property
    def waiting(self) -> int:
        return self.request.samples - self.started


class Slots:
    """S slots of at most L tokens each. Columns are (S,), or (S, L) for what every written token has."""

    def __init__(self, slots: int, max_length: int, experts: tuple[int, int] | None) -> None:
        """`experts` (layers, k): what is to be recorded for each token; None: nothing."""
        self.count = slots
        self.live = 0
        self.jobs: list[Job | None] = [None] * slots
        self.streams: list[TextStream | None] = [None] * slots
        self.number, self.prompt, self.written, self.limit = (np.zeros(slots, dtype=np.int64) for _ in range(4))
        self.last = np.zeros(slots, dtype=np.int64)  # the token that goes into the next run
        self.key = np.zeros(slots, dtype=np.uint64)
        self.options = np.zeros((4, slots))  # as sampler.Options has them
        self.cut = np.zeros(slots, dtype=np.bool_)
        self.tokens = np.zeros((slots, max_length), dtype=np.int64)
        self.log_probabilities = np.zeros((slots, max_length), dtype=np.float32)
        self.experts = None if experts is None else np.zeros((slots, max_length, *experts), dtype=np.int16)

    @property
    def held(self) -> np.ndarray:
        """How many tokens of each live sequence the cache holds, (live,): all but the last one."""
        return (self.prompt + self.written - 1)[: self.live]

    def start(self, job: Job, count: int, seed: int, streams: Sequence[TextStream | None]) -> None:
        """The job's next `count` samples take the first free slots."""
        request, sampling = job.request, job.request.sampling
        for number, stream in zip(range(job.started, job.started + count), streams, strict=True):
            row = self.live
            self.jobs[row], self.streams[row], self.number[row] = job, stream, number
            self.prompt[row], self.written[row] = len(request.prompt), 0
            self.limit[row] = sampling.max_new_tokens
            self.key[row] = sequence_key(seed, request.identity, number)
            top_k = np.inf if sampling.top_k is None else sampling.top_k
            self.options[:, row] = sampling.temperature, sampling.top_p, top_k, sampling.min_p
            self.cut[row] = sampling.temperature > 0 and (
                sampling.top_p < 1 or sampling.top_k is not None or sampling.min_p > 0
            )
            self.live += 1
        job.started += count

    def uniforms(self) -> np.ndarray:
        """The random number of each live sequence's next token, (live,) float64."""
        return uniforms(self.key[: self.live], self.written[: self.live].astype(np.uint64))

    def write(self, tokens: np.ndarray, log_probabilities: np.ndarray) -> None:
        """One more token of each live sequence, (live,)."""
        rows = np.arange(self.live)
        written = self.written[: self.live]
        self.tokens[rows, written] = tokens
        self.log_probabilities[rows, written] = log_probabilities
        self.last[: self.live] = tokens
        written += 1

    def drop(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Free `rows` and close the gaps; returns which rows moved, and where to."""
        gone = set(rows)
        left = self.live - len(gone)
        sources = [row for row in range(left, self.live) if row not in gone]
        targets = sorted(row for row in gone if row < left)
        if sources:
            columns = (self.number, self.prompt, self.written, self.limit, self.last, self.key, self.cut)
            for column in (*columns, self.tokens, self.log_probabilities):
                column[targets] = column[sources]
            self.options[:, targets] = self.options[:, sources]
            if self.experts is not None:
                self.experts[targets] = self.experts[sources]
            for source, target in zip(sources, targets, strict=True):
                self.jobs[target], self.streams[target] = self.jobs[source], self.streams[source]
        for row in range(left, self.live):
            self.jobs[row] = self.streams[row] = None
        self.live = left
        return sources, targets
