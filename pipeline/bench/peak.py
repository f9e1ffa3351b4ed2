"""How much memory tensors take at most."""

import os
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that tensors on the CPU had at once while `work` ran, above what there was before it."""
    os.environ["KINETO_LOG_LEVEL"] = "99"  # else torch's profiler writes a line to stderr for each of its phases
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    results = profiled.profiler.kineto_results
    assert results is not None
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most
