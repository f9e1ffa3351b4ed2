"""Processes that say that they serve."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
from pipeline.running import forget_server, note_server
note_server(Path(sys.argv[1]), "http://there", "theirs", follows=sys.argv[2] == "True")
print("noted", flush=True)
sys.stdin.read()
forget_server(Path(sys.argv[1]))
"""


@contextmanager
def another_server(root: Path, *, follows: bool) -> Iterator["subprocess.Popen[bytes]"]:
    """For the project at `root`, of a model `theirs`; at the end of the block it ends well, unless it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), str(follows)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"noted\n"
        yield process
