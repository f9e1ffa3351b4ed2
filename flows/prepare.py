"""`python -m flows.prepare`: make the databases of Prefect and MLflow, which is a part of setting the project up.

A first run would make them itself, but would keep its user waiting for it before the first stage begins.
"""

import subprocess
import sys
from pathlib import Path

from flows.local import environment
from pipeline.job import project_root
from pipeline.tracking import prepare

TIMEOUT = 300.0  # seconds


def main() -> int:
    root = project_root(Path.cwd())
    settings = environment(root)
    if "PREFECT_API_URL" not in settings:  # else a server has its own
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
        subprocess.run(command, env=settings, check=True, timeout=TIMEOUT, stdout=subprocess.DEVNULL)
    prepare(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
