"""The project's page at the end of a run: written by a process of its own, linked in Prefect where it has a server.

It tells about a run and decides nothing about it: what goes wrong here is said, and the run ends as it would have.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from prefect.artifacts import create_link_artifact

from flows.local import environment

TIMEOUT = 300.0  # seconds; the first look at a large model's experts takes longest


def publish(root: Path, to: Path | None = None) -> str:
    """Write the page, keep it with the last stage's MLflow run, link it. Returns one line for the reader.

    `to`: a folder that outlives the project's, for a copy, which is then the one that is linked.
    """
    command = [sys.executable, "-m", "pipeline.report", "--keep"]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment(root), capture_output=True, text=True, timeout=TIMEOUT, check=True
        )
        page = Path(done.stdout.strip().splitlines()[-1])
        if to is not None:
            to.mkdir(parents=True, exist_ok=True)
            page = Path(shutil.copy2(page, to))
        if "PREFECT_API_URL" in os.environ:
            create_link_artifact(
                key="report",
                link=page.as_uri(),
                link_text="report.html",
                description="Recipe, models, curves, samples and costs on one page, on the machine that wrote it",
            )
    except subprocess.CalledProcessError as error:
        return f"no page: `r1flow report` ended with {error.returncode}: {error.stderr.strip().splitlines()[-1:]}"
    except Exception as error:  # whatever it is, it must not fail the run
        return f"no page, or no link to it: {error}"
    return f"the page: {page}"
