"""`python -m flows.prepare`: make what a first run would otherwise keep its user waiting for.

That is the databases of Prefect and MLflow, the kernels for this processor, and the byte code of what the recipe
imports, all at one time: the installation before used one core.
"""

import subprocess
import sys
from pathlib import Path

from flows.local import environment
from pipeline.job import project_root
from pipeline.tracking import prepare

TIMEOUT = 300.0  # seconds
UPGRADE = ["-m", "prefect", "server", "database", "upgrade", "-y"]
COMPILE_KERNELS = ["-c", "from pipeline.model.native import library; library()"]
# Python writes byte code as it imports. All that is installed would be three times as much.
IMPORT_ALL = """
import importlib, pkgutil
from pipeline.process import importing
with importing():
    for package in map(importlib.import_module, ("pipeline", "flows")):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
"""


def main() -> int:
    root = project_root(Path.cwd())
    settings = environment(root)
    commands = [COMPILE_KERNELS, ["-c", IMPORT_ALL]]
    if "PREFECT_API_URL" not in settings:  # else a server has its own
        commands.append(UPGRADE)
    started = [
        subprocess.Popen([sys.executable, *command], env=settings, stdout=subprocess.DEVNULL) for command in commands
    ]
    try:
        prepare(root)
        for process in started:
            if process.wait(TIMEOUT) != 0:
                raise subprocess.CalledProcessError(process.returncode, process.args)
    finally:
        for process in started:
            process.kill()  # which does nothing to one that has ended
    return 0


if __name__ == "__main__":
    sys.exit(main())
