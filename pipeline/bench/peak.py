"""How much memory tensors take."""

import os
from collections.abc import Callable
from typing import TypeVar

from torch.profiler import ProfilerActivity, profile

Made = TypeVar("Made")


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that tensors on the CPU had at once while `work` ran, above what there was before it."""
    return _held(work)[0]


def peak_after(make: Callable[[], Made], work: Callable[[Made], object]) -> int:
    """The most while `work` ran on what `make` had made, with what that held; what making it took apart."""
    made: list[Made] = []
    _, kept = _held(lambda: made.append(make()))
    return kept + peak_bytes(lambda: work(made[0]))


def _held(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes of tensors above those before: the most at once, and at the end."""
    os.environ["KINETO_LOG_LEVEL"] = "99"  # else torch's profiler writes a line to stderr for each of its phases
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    results = profiled.profiler.kineto_results
    assert results is not None
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")  # pyrefly: ignore[missing-attribute]
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most, held
