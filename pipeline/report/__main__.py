"""`python -m pipeline.report`: write the page and, with a run's id behind it, keep it among that MLflow run's files.

The flow calls this as a process of its own: it does without torch, and what fails here must not fail a run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import EXPECTED, exit_code
from pipeline.job import PARAMS_FILE, project_root
from pipeline.params import load_params
from pipeline.process import die_with_parent
from pipeline.report.page import write_report
from pipeline.report.project import read_project
from pipeline.tracking import keep_file


def main(arguments: Sequence[str]) -> int:
    die_with_parent()
    try:
        root = project_root(Path.cwd())
        page = write_report(root)
        print(page)
        runs = [stage.state.mlflow_run for stage in read_project(root) if stage.state and stage.state.mlflow_run]
        if "--keep" in arguments and runs:
            keep_file(load_params(root / PARAMS_FILE).tracking, root, runs[-1], page)
    except EXPECTED as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
