"""The aliases of a registered model: who is champion or candidate, moving the champion's, and a version's files.

Errors are of two kinds: InputError for what a person has to mend, ConnectionError where the registry does not answer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.params import Tracking
from pipeline.tracking.registry import CANDIDATE, CHAMPION, DIGEST, FOLDER
from pipeline.tracking.store import explained, opened, store_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a registered model."""

    model: str
    number: int
    digest: str  # of the release; "" where it was not registered as one
    source: str  # MLflow's address of its files
    tags: dict[str, str]


class Aliases:
    """Of the project's registry. Blocking; may be used by several threads."""

    def __init__(self, options: Tracking, root: Path) -> None:
        self._options, self._root = options, root

    def champion(self, model: str) -> Version | None:
        """None where no version has the alias."""
        with self._asked() as client:
            return self._found(lambda: client.get_model_version_by_alias(model, CHAMPION))

    def candidate(self, model: str) -> Version | None:
        """The newest version that was registered; None where none has the alias."""
        with self._asked() as client:
            return self._found(lambda: client.get_model_version_by_alias(model, CANDIDATE))

    def figures(self, version: Version) -> dict[str, float]:
        """What was known of a version when it was registered: pass_at_1 with its bounds, parameters and the like."""
        with self._asked() as client:
            run = client.get_model_version(version.model, str(version.number)).run_id
            return dict(client.get_run(run).data.metrics) if run else {}

    def version(self, model: str, number: int) -> Version:
        """Raises InputError where there is none."""
        with self._asked() as client:
            if found := self._found(lambda: client.get_model_version(model, str(number))):
                return found
            # Not by MLflow's filter: a quote in the name would end it.
            versions = sorted(int(other.version) for other in client.search_model_versions() if other.name == model)
            if versions:
                raise InputError(f"{model}: version {number}: must be one of {', '.join(map(str, versions))}")
            models = [known.name for known in client.search_registered_models()]
        raise InputError(f"{model}: no registered model; known are {', '.join(models) or 'none yet: `r1flow run`'}")

    def move(self, version: Version) -> None:
        """Make it the champion."""
        with self._asked() as client:
            client.set_registered_model_alias(version.model, CHAMPION, str(version.number))

    def tag(self, version: Version, name: str, value: str | None) -> None:
        """None: take the tag away."""
        with self._asked() as client:
            if value is not None:
                client.set_model_version_tag(version.model, str(version.number), name, value)
            else:
                self._found(lambda: client.delete_model_version_tag(version.model, str(version.number), name))

    def download(self, version: Version, folder: Path) -> None:
        """Fill `folder` with the release's files."""
        with self._asked() as client:
            from mlflow.artifacts import download_artifacts

            uri = client.tracking_uri
            files = f"models:/{version.model}/{version.number}/{FOLDER}"
            download_artifacts(files, dst_path=str(folder), tracking_uri=uri, registry_uri=uri)
        for entry in (folder / FOLDER).iterdir():
            entry.rename(folder / entry.name)
        (folder / FOLDER).rmdir()

    @cached_property
    def _client(self) -> "MlflowClient":
        if self._options.uri is None and not store_file(self._root).is_file():
            raise InputError(f"{self._root}: no registry: nothing has run here yet; `r1flow run` registers releases")
        return opened(self._options, self._root)[0]

    @staticmethod
    def _found(call: "Callable[[], ModelVersion | None]") -> Version | None:
        """What a call gives; None where what it names is not there."""
        from mlflow.exceptions import MlflowException

        try:
            version = call()
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter: no such alias
                return None
            raise
        if version is None:
            return None
        tags = dict(version.tags)
        return Version(version.name, int(version.version), tags.get(DIGEST, ""), str(version.source), tags)

    @contextmanager
    def _asked(self) -> Iterator["MlflowClient"]:
        client = self._client  # outside: the opening tells its errors apart
        with explained(self._options, self._root):
            yield client
