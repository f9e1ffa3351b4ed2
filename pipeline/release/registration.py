"""The releases of a project, as the registry is to have them.

What release.json leaves out comes in here: the commit, the environment's lock, dvc.lock, and the runs of the stages.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.files import digest
from pipeline.job import PARAMS_FILE, identity, read_stages
from pipeline.params import Params, load_params
from pipeline.release.record import CARD, STAGE, Record, Release, read_record, release_folder, verify_checksums
from pipeline.tracking import Registered, Submission, git_tags, register

LOCKS = {"environment.lock": "requirements.lock", "dvc.lock": "dvc.lock"}  # tag → file of the project
DATA = "artifacts/curation/problems.parquet"
ABSENT = "none"


def register_releases(root: Path) -> list[Registered]:
    """Register every release of the project at `root`. Raises InputError where files are not those of the record."""
    params, record = load_params(root / PARAMS_FILE), read_record(root)
    for release in record.releases:
        verify_checksums(release_folder(root, release.name), release.digest)
    work = functools.cache(lambda: stage_keys(root))
    submissions = [submission(root, params, record, release, work) for release in record.releases]
    return register(params.tracking, root, submissions, params.deployment.promote)


def submission(
    root: Path, params: Params, record: Record, release: Release, work: Callable[[], Mapping[str, str]]
) -> Submission:
    """One release with all that the registry keeps of it."""
    folder = release_folder(root, release.name)
    inputs = {path: value for outputs in record.upstream.values() for path, value in outputs.items()} | release.trained
    commit = git_tags(root)
    locks = {tag: digest(root / file) if (root / file).is_file() else ABSENT for tag, file in LOCKS.items()}
    return Submission(
        model=f"{params.deployment.registry}-{release.name}",
        title=f"Releases of {release.name}: {release.kind}" + (f" of {release.of}" if release.of else ""),
        name=release.name,
        digest=release.digest,
        folder=folder,
        description=_without_front_matter((folder / CARD).read_text(encoding="utf-8")),
        tags={
            "kind": release.kind,
            "git.commit": commit.get("mlflow.source.git.commit", ABSENT),
            "git.dirty": commit.get("git.dirty", ABSENT),
            **({"of": release.of} if release.of else {}),
            **locks,
        },
        metrics={
            "parameters": release.parameters,
            "activated_parameters": release.activated_parameters,
            **{
                _bound(name, end): value for name, figure in release.evaluation.items() for end, value in figure.items()
            },
            **{f"parity.{name}": value for name, value in release.parity.items()},
        },
        data=(DATA, inputs[DATA]),
        inputs=inputs,
        work=lambda: {stage: key for stage, key in work().items() if _led_to(stage, release)},
    )


def stage_keys(root: Path) -> dict[str, str]:
    """Stage → key of its work as things lie in the project now, for every stage up to the releases."""
    return {stage: identity(root, stage).key for stage in read_stages(root)}


def _led_to(stage: str, release: Release) -> bool:
    """All stages but the other students'."""
    group, _, member = stage.partition("@")
    return not member or f"{group}/{member}" == release.model or stage == STAGE


def _bound(figure: str, end: str) -> str:
    return figure if end == "mean" else f"{figure}_{end}"


def _without_front_matter(card: str) -> str:
    return card.split("\n---\n", 1)[1] if card.startswith("---\n") else card
