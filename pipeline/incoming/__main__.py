"""`python -m pipeline.incoming STEP HOME`: the steps of the daily look at the data around the stage `curation`.

`pins` makes params.yaml name the content that the sources have now, and puts the last accepted set's figures where the
stage's drift gates look for them; `compare` writes the note; `begin` notes that a recipe was started on this set. What
a step found lies in runs/incoming/STEP.json, how it ended in runs/incoming/state.json.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.data.measures import accepted_file
from pipeline.errors import EXPECTED, InputError, exit_code
from pipeline.files import write_json
from pipeline.incoming.history import History
from pipeline.incoming.note import FOLDER, accepted_problems, compare
from pipeline.incoming.pins import follow_sources
from pipeline.job import PARAMS_FILE, project_root
from pipeline.params import load_params
from pipeline.process import die_with_parent, exit_on_signals
from pipeline.state import Attempt

STEPS = ("pins", "compare", "begin")
KEPT = "runs/store"  # of HOME, where params name no artifact store


def main(arguments: Sequence[str]) -> int:
    die_with_parent()
    exit_on_signals()
    try:
        if len(arguments) != 2 or arguments[0] not in STEPS:
            raise InputError(f"usage: python -m pipeline.incoming {'|'.join(STEPS)} HOME")
        root = project_root(Path.cwd())
        with Attempt(root, FOLDER):
            write_json(root / "runs" / FOLDER / f"{arguments[0]}.json", step(arguments[0], root, Path(arguments[1])))
    except EXPECTED as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    return 0


def step(name: str, root: Path, home: Path) -> Any:
    """What the step has found, as it is written down."""
    params = load_params(root / PARAMS_FILE)
    sources = params.curation.sources
    history = History(params.machine.store or KEPT, home, sources)
    if name == "compare":
        return asdict(compare(root, history))
    if name == "begin":
        history.begin(accepted_problems(root)["id"])
        return {}
    history.accepted(accepted_file(root / "runs" / "curation", sources))
    return follow_sources(root)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
