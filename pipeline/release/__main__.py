"""`python -m pipeline.release`: register every release of the project; which versions they are goes to runs/.

Where the project has an artifact store the releases go there as well. The flow calls this as a process of its own,
under its supervisor, as it does the stages: so it may be killed and tried again, and how it ended stands in
runs/registration/state.json.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from pipeline.errors import EXPECTED, exit_code
from pipeline.files import write_json
from pipeline.job import PARAMS_FILE, project_root
from pipeline.params import load_params
from pipeline.process import die_with_parent, exit_on_signals
from pipeline.release.record import REGISTRATION, read_record, registered_file
from pipeline.release.registration import register_releases
from pipeline.release.stored import store_releases
from pipeline.state import Attempt


def main() -> int:
    die_with_parent()
    exit_on_signals()
    try:
        root = project_root(Path.cwd())
        with Attempt(root, REGISTRATION):
            versions = register_releases(root)
            if (place := load_params(root / PARAMS_FILE).machine.store) is not None:
                store_releases(place, root, read_record(root).releases)
            write_json(registered_file(root), [asdict(version) for version in versions])
    except EXPECTED as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
