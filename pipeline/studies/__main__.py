"""`python -m pipeline.studies NAME`: compare the arms of a study that have all run. `r1flow study` calls this."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipeline.errors import EXPECTED, InputError, exit_code
from pipeline.files import atomic_file, write_json
from pipeline.job import project_root
from pipeline.process import die_with_parent, exit_on_signals, importing, keep_freed_memory, spin_briefly
from pipeline.studies.definition import load_study, results_folder
from pipeline.studies.tables import markdown, terminal


def main(arguments: Sequence[str]) -> int:
    die_with_parent()
    exit_on_signals()
    spin_briefly()
    keep_freed_memory()
    try:
        if len(arguments) != 1:
            raise InputError("usage: python -m pipeline.studies NAME")
        compare(project_root(Path.cwd()), arguments[0])
    except EXPECTED as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    return 0


def compare(root: Path, name: str) -> None:
    """Write results.json and results.md, print the table."""
    with importing():
        from pipeline.studies.compare import results  # torch, after the threads are set

    found = results(root, name, load_study(root, name))
    folder = results_folder(root, name)
    write_json(folder / "results.json", found, sort=False)
    with atomic_file(folder / "results.md") as temporary:
        temporary.write_text(markdown(found), encoding="utf-8")
    Console().print(terminal(found))
    print(folder / "results.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
