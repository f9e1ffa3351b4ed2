"""Releases as versions of registered models in MLflow: one version for one digest, whatever happens on the way.

Each step looks for what it is about to make, by the release's digest, before it makes it, and nothing is made without
that tag. So a registration that was killed anywhere is done again from the start and finds what there is: its run, the
files that were uploaded, the version. Processes of one machine wait for each other; where two machines share a server,
both may create a version, and both then keep the one with the lowest number.

Aliases are set once in a version's life, which a last tag notes. After that they are the people's.

Different from `mlflow.pyfunc.log_model`: the release goes into the store as it lies there, without a copy on the way,
and the steps are apart, so that each can be done again.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.params import Tracking
from pipeline.tracking.store import explained, opened, store_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

DIGEST, COMPLETE = "digest", "registered"  # tags
CANDIDATE, CHAMPION = "candidate", "champion"  # aliases
FOLDER = "release"  # of the release among a version's files
REQUIREMENTS = ("mlflow", "torch", "transformers")  # of answering.py
BATCH = 100  # metrics in a call


@dataclass(frozen=True)
class Submission:
    """A release that is to be registered."""

    model: str  # the registered model's name
    title: str  # one line about all its versions
    name: str  # the release's
    digest: str
    folder: Path
    description: str  # Markdown
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    data: tuple[str, str]  # what they were measured on: path in the project, SHA-256
    inputs: Mapping[str, str]  # path in the project → SHA-256
    work: Callable[[], Mapping[str, str]]  # stage → key of the work whose runs led to it; asked only where needed


@dataclass(frozen=True)
class Registered:
    """A release in the registry."""

    release: str
    model: str
    version: int
    aliases: tuple[str, ...]  # that are on this version now
    new: bool  # whether it was registered just now


Promote = Literal["first", "never", "always"]


def register(options: Tracking, root: Path, submissions: Sequence[Submission], promote: Promote) -> list[Registered]:
    """Register what is not registered yet. Raises InputError without a store, ConnectionError where it refuses."""
    client, experiment = opened(options, root)
    with explained(options, root), store_lock(root, "registration.lock"):
        return [_registered(client, experiment, root, submission, promote) for submission in submissions]


def _registered(
    client: "MlflowClient", experiment: str, root: Path, submission: Submission, promote: Promote
) -> Registered:
    _require_model(client, submission)
    version = _settled(client, submission)
    if new := version is None:
        run = _run(client, experiment, submission)
        model = _uploaded(client, experiment, root, run, submission)
        _describe(client, run, model, submission)
        client.create_model_version(
            submission.model,
            source=f"models:/{model.model_id}",
            model_id=model.model_id,  # a server refuses a source without it
            run_id=run.info.run_id,
            tags=dict(model.tags),
            description=submission.description,
        )
        version = _settled(client, submission)
    assert version is not None, "it was created and is not there"
    if COMPLETE not in version.tags:
        _set_aliases(client, version, promote)
    aliases = client.get_model_version(version.name, version.version).aliases
    return Registered(submission.name, submission.model, int(version.version), tuple(sorted(aliases)), new)


def _require_model(client: "MlflowClient", submission: Submission) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(submission.model, description=submission.title)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _settled(client: "MlflowClient", submission: Submission) -> "ModelVersion | None":
    """The version of this digest, the lowest where machines have raced; the others go, with what was uploaded twice."""
    from mlflow.exceptions import MlflowException

    found = client.search_model_versions(f"name = '{submission.model}' AND tags.{DIGEST} = '{submission.digest}'")
    ordered = sorted(found, key=lambda version: int(version.version))
    for late in ordered[1:]:
        try:
            client.delete_model_version(late.name, late.version)
            if late.source != ordered[0].source:
                client.delete_logged_model(str(late.source).removeprefix("models:/"))
        except MlflowException as error:  # the other machine was faster
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return ordered[0] if ordered else None


def _run(client: "MlflowClient", experiment: str, submission: Submission) -> "Run":
    """The run that stands for this registration: what the release was made from, and by which runs."""
    known = client.search_runs([experiment], f"tags.{DIGEST} = '{submission.digest}'", max_results=1)
    if known:
        return known[0]
    runs = {
        f"run.{stage.replace('@', '/')}": found[0].info.run_id  # a tag's name may have no @
        for stage, key in submission.work().items()
        if (found := client.search_runs([experiment], f"tags.stage = '{stage}' AND tags.key = '{key}'", max_results=1))
    }
    tags = {DIGEST: submission.digest, **submission.tags, **runs}
    return client.create_run(experiment, tags=tags, run_name=f"register {submission.name}")


def _uploaded(client: "MlflowClient", experiment: str, root: Path, run: "Run", submission: Submission) -> "LoggedModel":
    """The release's files in the store, READY; what an upload that was killed has left is filled up."""
    found = client.search_logged_models([experiment], f"tags.{DIGEST} = '{submission.digest}'")
    model = min(found, key=lambda model: (model.creation_timestamp, model.model_id), default=None)
    if model is None:
        tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
        model = client.create_logged_model(
            experiment, name=submission.name, source_run_id=run.info.run_id, tags=tags, model_type="release"
        )
    if model.status != "READY":
        shell = root / "runs" / "registration" / submission.digest
        shutil.rmtree(shell, ignore_errors=True)
        _write_shell(shell, model, run, submission)
        client.log_model_artifacts(model.model_id, str(submission.folder), FOLDER)
        client.log_model_artifacts(model.model_id, str(shell))
        client.finalize_logged_model(model.model_id, "READY")
        shutil.rmtree(shell)
    return model


def _write_shell(folder: Path, logged: "LoggedModel", run: "Run", submission: Submission) -> None:
    """What MLflow keeps beside the release's own files, to load it: MLmodel, the code, requirements."""
    from mlflow import pyfunc
    from mlflow.models import Model

    pyfunc.save_model(
        folder,
        python_model=str(Path(__file__).with_name("answering.py")),
        mlflow_model=Model(run_id=run.info.run_id, model_id=logged.model_id, artifact_path=submission.name),
        metadata={DIGEST: submission.digest},
        pip_requirements=[f"{name}=={installed(name).partition('+')[0]}" for name in REQUIREMENTS],
    )
    # `artifacts=` would copy the release to here; it is named instead, and goes into the store from where it lies.
    model = Model.load(folder)
    model.flavors[pyfunc.FLAVOR_NAME]["artifacts"] = {FOLDER: {"path": FOLDER, "uri": FOLDER}}
    model.save(folder / "MLmodel")


def _describe(client: "MlflowClient", run: "Run", model: "LoggedModel", submission: Submission) -> None:
    """Metrics and data sets, at the run's own time: noted again they are the same ones."""
    from mlflow.entities import Dataset, DatasetInput, LoggedModelOutput, Metric

    run_id, (path, checksum) = run.info.run_id, submission.data
    datasets = [
        # MLflow keeps 36 characters of a digest.
        DatasetInput(Dataset(name=name, digest=value[:32], source_type="local", source=name))
        for name, value in submission.inputs.items()
    ]
    client.log_inputs(run_id, datasets=datasets)
    known_outputs = client.get_run(run_id).outputs
    if known_outputs is None or not known_outputs.model_outputs:  # MLflow refuses to note one again
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    known = {"model_id": model.model_id, "dataset_name": path, "dataset_digest": checksum[:32], "run_id": run_id}
    metrics = [Metric(name, value, run.info.start_time, 0, **known) for name, value in submission.metrics.items()]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
    client.set_terminated(run_id, "FINISHED")


def _set_aliases(client: "MlflowClient", version: "ModelVersion", promote: Promote) -> None:
    """`candidate`, and `champion` where it is to have it; then note that this is done."""
    aliases = client.get_registered_model(version.name).aliases
    client.set_registered_model_alias(version.name, CANDIDATE, version.version)
    if promote == "always" or (promote == "first" and CHAMPION not in aliases):
        client.set_registered_model_alias(version.name, CHAMPION, version.version)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    client.set_model_version_tag(version.name, version.version, COMPLETE, stamp)
