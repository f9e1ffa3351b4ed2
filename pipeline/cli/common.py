"""What several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def project() -> Path:
    """The project's folder: this one, or the nearest above. Raises InputError."""
    from pipeline.job import project_root

    return project_root(Path.cwd())
