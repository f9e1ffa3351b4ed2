"""What is checked out, as tags of runs and of registered models."""

import shutil
import subprocess
from pathlib import Path


def git_tags(root: Path) -> dict[str, str]:
    """The commit that is checked out, and whether tracked files differ from it. dvc.lock changes with every stage."""
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    if commit is None or changes is None:
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changes)).lower()}


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None outside a repository and where there is no git."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
