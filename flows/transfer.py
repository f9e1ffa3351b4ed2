"""DVC's commands that move data, with a time limit, and tried again where the network may be to blame."""

import time

from flows.attempts import StageFailedError
from flows.commands import Commands
from flows.supervise import STOPPED, TIMED_OUT
from pipeline.errors import EXIT_BUG

TRIES = 3
DELAY = 5.0  # seconds before the second try, twice that before the third


def transfer(dvc: Commands, stage: str, timeout: float, *arguments: str) -> None:
    """Run `dvc ARGUMENTS` for a stage, each try in at most `timeout` seconds. Raises StageFailedError."""
    status = 0
    for tried in range(TRIES):
        if tried:
            time.sleep(DELAY * 2 ** (tried - 1))
        status = dvc.run(arguments, timeout)
        if status in (0, STOPPED):
            break
    if status != 0:
        why = f"not done after {timeout:.0f} s" if status == TIMED_OUT else f"ended with {status}"
        exit_code = STOPPED if status == STOPPED else EXIT_BUG
        raise StageFailedError(stage, exit_code, f"dvc {arguments[0]}: {why}", 0.0)
