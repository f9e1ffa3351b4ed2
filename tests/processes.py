"""What processes are, where any of them may have ended a moment ago."""

from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")


def unless_gone(ask: Callable[[], T], otherwise: T) -> T:
    """What a process answers, for instance by its `cmdline`; `otherwise` where it has ended."""
    try:
        return ask()
    except psutil.NoSuchProcess:
        return otherwise


def lives(process: psutil.Process) -> bool:
    """Whether it has not ended: one that nobody has waited for has."""
    return unless_gone(process.status, psutil.STATUS_ZOMBIE) != psutil.STATUS_ZOMBIE
