"""Params of another file become the project's own, as `dvc exp run -S` does it: the workspace follows the params."""

import subprocess
from pathlib import Path

from pipeline.files import atomic_file, digest
from pipeline.job import PARAMS_FILE
from pipeline.params import load_params


def adopt_params(root: Path, source: Path) -> str:
    """Check `source` and make its content the project's params.yaml, in one atomic step.

    Returns what to tell of it: where the old content is, which git holds or a copy under runs/params; nothing where
    nothing changed. Raises InputError, and changes nothing, where `source` breaks a rule.
    """
    load_params(source)
    current = root / PARAMS_FILE
    content = source.read_bytes()
    if content == current.read_bytes():
        return ""
    kept = f"`git checkout {PARAMS_FILE}` brings the committed ones back"
    if not _is_in_git(current):
        copy = root / "runs" / "params" / f"{digest(current)[:16]}.yaml"
        with atomic_file(copy) as temporary:
            temporary.write_bytes(current.read_bytes())
        kept = f"those so far are in {copy.relative_to(root)}"
    with atomic_file(current) as temporary:
        temporary.write_bytes(content)
    return f"{PARAMS_FILE} now holds {source}; {kept}"


def _is_in_git(path: Path) -> bool:
    """Whether the repository has an object of a file's present content."""
    found = subprocess.run(["git", "hash-object", path.name], cwd=path.parent, capture_output=True, text=True)
    known = subprocess.run(["git", "cat-file", "-e", found.stdout.strip()], cwd=path.parent, capture_output=True)
    return found.returncode == 0 and known.returncode == 0
