"""What pipeline.rewards.containment runs inside the sandbox: it tries to get out, and prints what it could do.

Its input is JSON: where the secret, the folder and the socket lie, and the limits. It needs nothing but the standard
library, for nothing else is there.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    told: dict[str, Any] = json.loads(sys.stdin.read())
    folder = Path(told["folder"])
    attempts: dict[str, Callable[[], object]] = {
        "read a file outside": lambda: (folder / "secret").read_text() == told["secret"],
        "read the environment": lambda: set(os.environ) - set(told["environment"]),
        "write outside": lambda: (folder / "written").write_text("x"),
        "write to its root folder": lambda: Path("/written").write_text("x"),
        "see other processes": lambda: Path("/proc").exists() or os.getppid() > 1,
        "connect over the network": lambda: _connect(socket.AF_INET, ("127.0.0.1", told["port"])),
        "connect to a unix socket": lambda: _connect(socket.AF_UNIX, str(folder / "socket")),
        "fill more than its share of /tmp": lambda: _fill(told["disk_bytes"]),
        "take more than its share of memory": lambda: bytearray(told["memory_bytes"]),
        "start more than its share of threads": lambda: _crowd(told["processes"]),
        "leave a process behind": _leave,
    }
    print(json.dumps({name: _done(attempt) for name, attempt in attempts.items()}))


def _done(attempt: Callable[[], object]) -> bool:
    try:
        return bool(attempt())
    except (OSError, MemoryError, RuntimeError):  # RuntimeError: no thread can be started
        return False


def _connect(family: int, address: Any) -> bool:
    with socket.socket(family) as connection:
        connection.settimeout(1)
        connection.connect(address)
    return True


def _fill(limit: int) -> bool:
    written = 0
    for number in range(64):
        path = Path(f"/tmp/{number}")
        written += path.write_bytes(bytes(limit // 16))
    return written > limit


def _crowd(limit: int) -> bool:
    leave = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(limit):
            thread = threading.Thread(target=leave.wait)
            thread.start()
            threads.append(thread)
        return True
    finally:
        leave.set()
        for thread in threads:
            thread.join()


def _leave() -> bool:
    """A daemon with a session of its own. Whether it outlives the sandbox is seen outside."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    return True


if __name__ == "__main__":
    main()
