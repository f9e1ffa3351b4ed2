"""`python -m pipeline.promotion HOME`: how the champion stands. Exit status 3: it lies below its floor.

The nightly flow calls this as a process of its own, under its supervisor. Figures and ending stand in
runs/champion/state.json.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import EXPECTED, InputError, exit_code
from pipeline.job import project_root
from pipeline.process import die_with_parent, exit_on_signals, spin_briefly
from pipeline.promotion.standing import NAME, stand
from pipeline.state import Attempt


def main(arguments: Sequence[str]) -> int:
    die_with_parent()
    exit_on_signals()
    spin_briefly()
    try:
        if len(arguments) != 1:
            raise InputError("usage: python -m pipeline.promotion HOME")
        root = project_root(Path.cwd())
        with Attempt(root, NAME) as attempt:
            standing = stand(root, Path(arguments[0]))
            attempt.update(metrics=standing.figures())
            standing.require()
    except EXPECTED as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
