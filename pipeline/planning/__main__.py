"""`python -m pipeline.planning`: make the plan; the flow calls this as a process of its own, under its supervisor.

How it ended stands in runs/plan/state.json. Exit status 3: no release meets deployment.target.
"""

import sys
from pathlib import Path

from pipeline.errors import EXPECTED, exit_code
from pipeline.job import project_root
from pipeline.planning.plan import make_plan
from pipeline.planning.record import NAME
from pipeline.process import die_with_parent, exit_on_signals, spin_briefly
from pipeline.state import Attempt


def main() -> int:
    die_with_parent()
    exit_on_signals()
    spin_briefly()
    try:
        root = project_root(Path.cwd())
        with Attempt(root, NAME):
            make_plan(root)
    except EXPECTED as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
