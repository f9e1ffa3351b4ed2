"""What a process asks of its kernel so that nothing outlives the one who started it, how its threads wait, how it keeps
memory and what it spares itself at its start.

Linux alone knows these requests (prctl(2)); elsewhere they do nothing, and the supervisor in flows/supervise.py does
what can be done by sending signals.
"""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_MADV_HUGEPAGE = 14
_LARGE_PAGE = 2**21
_M_MMAP_THRESHOLD = -3


RANK_TIMEOUT = "R1FLOW_RANK_TIMEOUT"
"""Environment variable of the ranks: seconds that one waits for the others before it gives them up."""


def is_rank() -> bool:
    """Whether torchrun started this process, as one of those that train a model together."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """The number of this process among them; 0 where it is alone."""
    return int(os.environ["RANK"]) if is_rank() else 0


def end_rank(status: int) -> NoReturn:
    """End this process, one of several ranks, without taking the interpreter down.

    Threads of torch's collectives may still run while that is done, and it then ends by SIGABRT after all of its work:
    of runs of four ranks on a busy machine one in seven did.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def die_with_parent() -> None:
    """Ask for SIGTERM when the parent ends, however it ends. Holds across exec, not for children of this process."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none can slip out of sight."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}): {os.strerror(ctypes.get_errno())}")


def spin_briefly() -> None:
    """Let OpenMP's threads wait awake for each other for a few µs instead of up to 1 ms. Call before torch is imported.

    Where anything else runs on the same cores, a thread that waits awake keeps out the one it waits for: training steps
    of 0.2 s took more than 5 s. Where nothing else runs it makes no difference.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is asked for next, up to 1 GiB, instead of giving it back to the kernel.

    A training step frees and asks for the same hundreds of megabytes again; fetched anew page by page they took a tenth
    of its time. Where the C library is another one this does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest that it takes
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
        _large_pages(libc)


def _large_pages(libc: ctypes.CDLL) -> None:
    """Let the heap grow by most of 1 GiB at once, of addresses and not of memory, and ask for pages of 2 MiB there."""
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = (ctypes.c_size_t,), (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.mallopt(_M_TOP_PAD, 2**30 - 2**26)
    block = libc.malloc(2**24)
    end = libc.sbrk(0)
    libc.mallopt(_M_TOP_PAD, 2**17)
    if block and end > block:
        begin = -(-block // _LARGE_PAGE) * _LARGE_PAGE
        libc.madvise(begin, (end - begin) // _LARGE_PAGE * _LARGE_PAGE, _MADV_HUGEPAGE)  # where there are none, nothing
    libc.free(block)


@contextmanager
def importing() -> Iterator[None]:
    """For a block that imports much: keep the garbage collector away from it, now and later.

    What is imported lives as long as the process. To look through it again and again while more of it came took a fifth
    of a stage's start, and to look through it a last time at the end as long once more.
    """
    collects, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:  # else it would keep garbage alone
            gc.freeze()
        if collects:
            gc.enable()


def exit_on_signals() -> None:
    """Turn the first SIGTERM or SIGINT into SystemExit(128 + signal), so that `finally` and `with` do their work.

    Later ones are not heard: they would cut that work short.
    """
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, _pass)
    signal.signal(signal.SIGINT, _pass)
    raise SystemExit(128 + number)


def _pass(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which children would inherit."""
