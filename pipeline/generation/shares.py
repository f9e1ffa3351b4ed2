"""One engine on each rank, which together answer what all of them are asked."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.generation.engine import Engine
from pipeline.generation.requests import Completion, Request
from pipeline.world import deal, gathered, world


class SharedEngine:
    """An engine that is kept from call to call. All ranks ask the same, each writes its share, all get everything.

    The samples of a request stay together. A text does not depend on who writes it, as its random numbers are its own.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions in any order; `Completion.request` counts within this call."""
        costs = [len(request.prompt) + request.samples * request.sampling.max_new_tokens for request in requests]
        own = deal(costs, world().size)[world().rank]
        places = {self._engine.submit(requests[place]): place for place in own}  # the engine counts on for ever
        written = [replace(completion, request=places[completion.request]) for completion in self._engine.run()]
        for completions in gathered(written):
            yield from completions
