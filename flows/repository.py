"""What the flows ask of git, with a time limit, and without a word about credentials that an address may hold."""

import re
import subprocess
from pathlib import Path

from pipeline.errors import InputError

LOCAL_SECONDS = 60.0
NETWORK_SECONDS = 300.0


def git(folder: Path, *arguments: str, timeout: float = LOCAL_SECONDS) -> str:
    """What `git ARGUMENTS` prints in `folder`. Raises InputError where it refuses, ConnectionError where it hangs."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise ConnectionError(f"{folder}: git {arguments[0]}: no answer within {timeout:.0f} s") from None
    if done.returncode != 0:
        raise InputError(f"{folder}: git {arguments[0]}: {without_credentials(done.stderr.strip())}")
    return done.stdout.strip()


def without_credentials(text: str) -> str:
    """`https://user:token@host/…` → `https://host/…`"""
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1", text)
