"""DVC's commands that move data, supervised, with a time limit, and tried again where the network may be to blame."""

import sys
import time
from pathlib import Path

from flows.attempts import StageFailedError
from flows.local import environment
from flows.supervise import STOPPED, TIMED_OUT, run
from pipeline.errors import EXIT_BUG

TRIES = 3
DELAY = 5.0  # seconds before the second try, twice that before the third


def transfer(root: Path, stage: str, timeout: float, *arguments: str) -> None:
    """Run `dvc ARGUMENTS` in the project at `root` for a stage, each try in at most `timeout` seconds.

    Raises StageFailedError.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    status = 0
    for tried in range(TRIES):
        if tried:
            time.sleep(DELAY * 2 ** (tried - 1))
        status = run(command, cwd=root, env=environment(root), timeout=timeout)
        if status in (0, STOPPED):
            break
    if status != 0:
        why = f"not done after {timeout:.0f} s" if status == TIMED_OUT else f"ended with {status}"
        exit_code = STOPPED if status == STOPPED else EXIT_BUG
        raise StageFailedError(stage, exit_code, f"dvc {arguments[0]}: {why}", 0.0)
