"""Decoding as CUDA graphs: one launch for a step of hundreds of small kernels, which on a GPU is most of its time.

Different from the textbook: a graph has fixed shapes, so batch and length are padded to powers of two, and one graph is
captured for each pair that occurs. A padded row computes on a free slot: it writes to the first place of its row in the
cache, where nothing lies that will be read. Only the forward is captured; sampling, whose options change, is outside.
"""

import torch
from torch import Tensor

from pipeline.model.cache import SlotCache
from pipeline.model.decoder import Decoder, Output
from pipeline.model.experts import Routing

SHORTEST = 128
"""Length that attention reads at least: shorter ones would save less than their graphs cost."""


class DecodeGraphs:
    """One more token for each of the first rows of a cache. The weights may change between calls, in place."""

    def __init__(self, model: Decoder, cache: SlotCache, slots: int) -> None:
        self._model, self._cache, self._slots = model, cache, slots
        device = model.unembedding.device
        self._tokens, self._lengths = (torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(2))
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Output]] = {}
        self._pool = torch.cuda.graph_pool_handle()  # the graphs never run side by side, so they can share memory

    def run(self, tokens: Tensor, lengths: Tensor, longest: int) -> Output:
        """tokens and lengths (B,) on the host, as the decoder and `SlotCache.begin` take them; outputs of B rows.

        The next call overwrites the outputs.
        """
        rows = len(tokens)
        key = padded(rows, 1, self._slots), padded(longest + 1, SHORTEST, self._cache.max_length)
        self._tokens[:rows].copy_(tokens)
        self._lengths[:rows].copy_(lengths)
        self._lengths[rows : key[0]].zero_()
        if key not in self._graphs:
            self._graphs[key] = self._capture(*key)
        graph, output = self._graphs[key]
        graph.replay()
        routing = (Routing(*(part[:rows] for part in (r.experts, r.weights, r.scores))) for r in output.routing)
        return Output(output.hidden[:rows], tuple(routing))

    def _capture(self, rows: int, length: int) -> tuple[torch.cuda.CUDAGraph, Output]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # outside the graph first: libraries set themselves up in their first calls
            self.forward(rows, length)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self.forward(rows, length)
        return graph, output

    def forward(self, rows: int, length: int) -> Output:
        """What is captured: everything on the device, and nothing of it read back."""
        positions = self._cache.begin(self._lengths[:rows], length - 1)
        return self._model(self._tokens[:rows], positions, self._cache)


def padded(size: int, smallest: int, largest: int) -> int:
    """The least power of two from `smallest` on that holds `size`, but `largest` at most."""
    return min(max(smallest, 1 << (size - 1).bit_length()), largest)
