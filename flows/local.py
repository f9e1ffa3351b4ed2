"""The environment that makes the flow run by itself: no Prefect server to start, nothing written outside the project.

Whoever has set PREFECT_API_URL has a server, and its settings are left alone.
"""

import os
import sys
from pathlib import Path

WITHOUT_SERVER = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the first start makes its database
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # the flow prints its own table and one line for an error
    "PREFECT_LOGGING_TO_API_ENABLED": "false",  # nobody could read them there afterwards
    "DO_NOT_TRACK": "1",
}


def environment(root: Path) -> dict[str, str]:
    """Environment variables for the flow of the project at `root` and all that it starts. Makes Prefect's folder."""
    inherited = dict(os.environ)
    # dvc.yaml says `python`; that is to be this one, whether or not the user has activated its environment.
    inherited["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)])
    if "PREFECT_API_URL" in inherited:
        return inherited
    home = Path(inherited.get("PREFECT_HOME", root / "runs" / "prefect"))
    home.mkdir(parents=True, exist_ok=True)  # Prefect would not make the folder above
    return {**WITHOUT_SERVER, **inherited, "PREFECT_HOME": str(home)}


def shared(others: int) -> dict[str, str]:
    """Environment of a stage that others run beside: its part of the cores, lines instead of a moving bar."""
    if not others:
        return {}
    cores = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // (others + 1)))
    return {"OMP_NUM_THREADS": cores, "POLARS_MAX_THREADS": cores, "TTY_COMPATIBLE": "0"}
