"""A study from end to end: each arm and seed by DVC in a workspace of its own, then all of them on the same problems.

A workspace under runs/studies/NAME/ is a small project: the code as dvc.yaml's deps name it, dvc.yaml, the arm's
params.yaml. Its DVC cache is the project's, so a stage that another arm, another study or the recipe has run with the
same deps and params is restored and not run again. A study that was stopped goes on where it was.

Different from `r1flow run`: there is no Prefect here. A study has no schedule, no retry and no approval.
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from dvc.repo import Repo

from flows.dag import read_dag
from flows.local import environment
from flows.page import publish
from flows.supervise import TIMED_OUT, run
from pipeline.errors import EXIT_BUG
from pipeline.files import atomic_file, digest, write_json
from pipeline.job import DAG_FILE, PARAMS_FILE, read_stages
from pipeline.params import load_params
from pipeline.state import State, ending, read_state
from pipeline.studies.definition import Study, arm_params, load_study, require_model, workspace, write_yaml
from pipeline.studies.spent import WAY

CONFIG = """\
[core]
    analytics = false
    autostage = false
    check_update = false
    no_scm = true
    site_cache_dir = .dvc/tmp/site
[cache]
    dir = {cache}
"""


def run_study(root: Path, name: str) -> int:
    """Run what is missing of a study and compare its arms. Returns 0, or the exit status of the stage that failed.

    All arms are checked before the first one runs. Raises InputError.
    """
    study = load_study(root, name)
    cells = [(arm, seed) for seed in study.seeds for arm in study.arms]
    for arm, seed in cells:
        prepare(root, name, study, arm, seed)
    hours = load_params(root / PARAMS_FILE).machine.stage_timeout_hours
    for place, (arm, seed) in enumerate(cells, start=1):
        folder, stage = workspace(root, name, arm, seed), study.arms[arm].model
        stages = read_dag(folder).until(stage)
        write_json(folder / WAY, stages)
        print(f"{name}: {arm}, seed {seed} ({place} of {len(cells)})", flush=True)
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", stage]
        before = {stage: read_state(folder, stage) for stage in stages}
        status = run(command, cwd=folder, env=environment(root), timeout=hours * 3600 * len(stages))
        if status != 0:
            exit_code, reason = _failure(folder, before, status)
            print(f"{name}: {arm}, seed {seed}: {reason}", file=sys.stderr)
            return exit_code
    compare = [sys.executable, "-m", "pipeline.studies", name]
    status = run(compare, cwd=root, env=environment(root), timeout=hours * 3600)
    if status == TIMED_OUT:
        print(f"{name}: the comparison took too long", file=sys.stderr)
        return EXIT_BUG
    if status == 0:
        print(publish(root))
    return status


def prepare(root: Path, name: str, study: Study, arm: str, seed: int) -> Path:
    """Make the workspace of an arm, or bring its code and params up to the project's; what it has run stays."""
    params = arm_params(root, name, study, arm, seed)
    folder = workspace(root, name, arm, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part in _code(root):
        _copy(root / part, folder / part)
    with atomic_file(folder / PARAMS_FILE) as temporary:
        write_yaml(params, temporary)
    with Repo(str(root)) as repo:
        cache = repo.cache.local_cache_dir
    with atomic_file(folder / ".dvc" / "config") as temporary:
        temporary.write_text(CONFIG.format(cache=cache), encoding="utf-8")
    require_model(folder, study.arms[arm].model)
    return folder


def _code(root: Path) -> set[str]:
    """What lies in the project and is read by its stages: the packages and files of the deps, dvc.yaml, .dvcignore."""
    deps = {dependency for stage in read_stages(root).values() for dependency in stage.get("deps", [])}
    parts = {Path(dependency).parts[0] for dependency in deps} - {"artifacts"}
    return parts | {name for name in (DAG_FILE, ".dvcignore") if (root / name).is_file()}


def _copy(source: Path, target: Path) -> None:
    """Times of files are kept, so that byte code and compiled kernels, which come along, stay valid."""
    if target.exists() and digest(source) == digest(target):
        return
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _failure(folder: Path, before: Mapping[str, State | None], status: int) -> tuple[int, str]:
    """Exit status and reason of the stage that has not ended well since `before`: DVC replaces both by its own."""
    for stage, earlier in before.items():
        state = read_state(folder, stage)
        if state is not None and state != earlier and state.exit_code != 0:
            return state.exit_code or EXIT_BUG, f"{stage}: {state.error or ending(state)}"
    return EXIT_BUG, "took too long" if status == TIMED_OUT else f"dvc repro ended with {status}"
