"""How an engine's requests have ended: what a new model is judged by while it shadows and after it took over."""

import math
import time
from collections import deque
from dataclasses import dataclass

KEPT = 2_000  # requests


@dataclass(frozen=True, slots=True)
class Ended:
    """One request."""

    at: float  # time.monotonic()
    seconds: float  # from the prompt to the last token
    failed: bool


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a model must keep to."""

    errors: float  # share of requests
    latency: float  # seconds that 95 of 100 requests may take
    least: int  # requests before anything is judged


class Tally:
    """The last requests of one engine. One whose client went is not in it: it says nothing about the model."""

    def __init__(self) -> None:
        self._ended: deque[Ended] = deque(maxlen=KEPT)

    def add(self, seconds: float, *, failed: bool = False) -> None:
        self._ended.append(Ended(time.monotonic(), seconds, failed))

    def since(self, at: float) -> list[Ended]:
        return [one for one in self._ended if one.at >= at]

    def trouble(self, at: float, bounds: Bounds) -> str | None:
        """What is over a bound among the requests that have ended since `at`, in words."""
        ended = self.since(at)
        if not ended or len(ended) < bounds.least:
            return None
        failed = sum(one.failed for one in ended)
        if failed > bounds.errors * len(ended):
            return f"{failed} of {len(ended)} requests failed: at most {bounds.errors:.0%} may (errors)"
        seconds = sorted(one.seconds for one in ended)
        slow = seconds[math.ceil(0.95 * len(seconds)) - 1]
        if slow > bounds.latency:
            return f"95 of 100 requests took up to {slow:.2f} s: at most {bounds.latency:g} (latency_seconds)"
        return None
