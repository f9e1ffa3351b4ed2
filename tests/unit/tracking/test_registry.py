"""One version for one digest: killed at every call in turn, two at once, two machines; and what is loaded answers.

The cut upload and the race are those of real processes, from a fork server that has MLflow imported already; to die
at every call there are too many calls for that.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from pipeline import chat
from pipeline.files import digest
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer
from pipeline.params import Sampling, Tracking
from pipeline.release.export import export
from pipeline.release.record import write_checksums
from pipeline.tracking import Description, Tracker, registry, store
from pipeline.tracking.registry import Registered, Submission, register
from pipeline.tracking.store import ENVIRONMENT, connect

pytestmark = pytest.mark.slow  # opening a new store takes seconds

MODEL = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
DATA = ("artifacts/curation/problems.parquet", "e" * 64)
NAME = "r1flow-little"


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow.pyfunc", "pipeline.tracking.registry", "tests.unit.tracking.test_registry"])
    return context


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a store that holds one finished run, and a release."""
    root = tmp_path_factory.mktemp("opened")
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    decoder = Decoder(ModelConfig.from_hf({**MODEL, "vocab_size": len(tokenizer)}))
    decoder.init_weights(0)
    export(decoder, tokenizer, Sampling(max_new_tokens=8), root / "little")
    write_checksums(root / "little")
    with Tracker(Tracking(), root, Description("distillation@little", "0123abcd", {}, {})):
        pass
    return root


@pytest.fixture
def project(opened: Path, tmp_path: Path) -> Path:
    """A copy of it; paths in the store are absolute, so the copy's artifacts go to the first one's folder."""
    shutil.copytree(opened, tmp_path / "project")
    return tmp_path / "project"


def submission(root: Path, **changes: Any) -> Submission:
    one = Submission(
        model=NAME,
        title="Releases of little",
        name="little",
        digest=digest(root / "little" / "checksums.json"),
        folder=root / "little",
        description="# little",
        tags={"kind": "student", "git.commit": "c" * 40},
        metrics={"pass_at_1": 0.75, "sum.pass_at_1": 0.5},
        data=DATA,
        inputs=dict([DATA]),
        work=lambda: {"distillation@little": "0123abcd", "base": "never ran"},
    )
    return replace(one, **changes)


def registered(root: Path, promote: Any = "first", **changes: Any) -> Registered:
    [version] = register(Tracking(), root, [submission(root, **changes)], promote)
    return version


def client(root: Path) -> Any:
    return connect(Tracking(), root)[0]


def versions(root: Path) -> list[Any]:
    return list(client(root).search_model_versions(f"name = '{NAME}'"))


class KilledError(BaseException):
    """Nothing in the registry catches it or cleans up after it, so it leaves what a kill leaves."""


class Deadly:
    """A client that is killed before its `call`-th call."""

    def __init__(self, true: Any, call: int) -> None:
        self._true, self._left = true, call

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._true, name)
        if callable(attribute):
            self._left -= 1
            if not self._left:
                raise KilledError
        return attribute


def die(root: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the registration was killed: not where it has fewer calls."""

    def deadly(options: Tracking, root: Path) -> tuple[Any, str]:
        true, experiment = connect(options, root)
        return Deadly(true, call), experiment

    with monkeypatch.context() as patch:
        patch.setattr(store, "connect", deadly)
        try:
            registered(root)
        except KilledError:
            return True
    return False


def in_process(server: ForkServerContext, work: Callable[..., None], *arguments: Any) -> int | None:
    process = server.Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def retry(root: Path) -> None:
    """Register once more and look at everything: in a process of its own a failed assertion ends it with 1."""
    version = registered(root)
    assert version == Registered("little", NAME, 1, ("candidate", "champion"), version.new)
    [known] = versions(root)
    assert known.tags["digest"] == submission(root).digest
    [experiment] = [one.experiment_id for one in client(root).search_experiments() if one.name == "r1flow"]
    [model] = client(root).search_logged_models([experiment])
    assert (model.status, known.source) == ("READY", f"models:/{model.model_id}")
    stored = Path(model.artifact_location.removeprefix("file://"))
    assert digest(stored / "release") == digest(root / "little")
    runs = client(root).search_runs([experiment], "tags.digest != ''")
    assert [(run.info.status, run.data.metrics) for run in runs] == [("FINISHED", dict(submission(root).metrics))]
    assert "registered" in known.tags


def test_killed_before_any_of_its_calls_and_tried_again_it_is_one_version(
    opened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, killed = 0, True
    while killed:
        call += 1
        root = shutil.copytree(opened, tmp_path / str(call))
        killed = die(root, call, monkeypatch)
        retry(root)
    assert call > 20  # each of them was the last one once


def half_upload(root: Path) -> None:
    """Die with some of the files in the store."""

    def broken(client: Any, model: str, folder: str, path: str | None = None) -> None:
        client.log_model_artifact(model, str(root / "little" / "config.json"), path)
        os.kill(os.getpid(), signal.SIGKILL)

    from mlflow import MlflowClient

    MlflowClient.log_model_artifacts = broken
    registered(root)


def test_an_upload_that_was_cut_is_filled_up(project: Path, server: ForkServerContext) -> None:
    assert in_process(server, half_upload, project) == -signal.SIGKILL
    assert in_process(server, retry, project) == 0


def test_two_at_once_make_one_version(project: Path, server: ForkServerContext) -> None:
    both = [server.Process(target=registered, args=(project,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert in_process(server, retry, project) == 0


def test_another_machine_that_registers_meanwhile_keeps_its_version(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so between our look and our creation; the lock is of one machine."""
    look = registry._settled

    def look_too_early(client: Any, one: Submission) -> Any:
        found = look(client, one)
        monkeypatch.setattr(registry, "_settled", look)
        assert registered(project).new
        return found

    monkeypatch.setattr(registry, "_settled", look_too_early)
    monkeypatch.setattr(registry, "store_lock", lambda *_: contextlib.nullcontext())
    assert registered(project).version == 1
    assert [int(one.version) for one in versions(project)] == [1]


def test_of_two_versions_that_were_uploaded_apart_the_later_goes_with_its_files(project: Path) -> None:
    assert registered(project, "never").aliases == ("candidate",)
    true, [first] = client(project), versions(project)
    twin = true.create_logged_model(true.get_run(first.run_id).info.experiment_id, name="little")
    true.create_model_version(NAME, source=f"models:/{twin.model_id}", tags={"digest": first.tags["digest"]})
    assert len(versions(project)) == 2
    again = registered(project)
    assert (again.version, again.new) == (1, False)
    assert [int(one.version) for one in versions(project)] == [1]
    assert twin.model_id not in [one.model_id for one in true.search_logged_models([twin.experiment_id])]


def test_a_version_says_where_it_comes_from(project: Path) -> None:
    assert registered(project).new
    [version], true = versions(project), client(project)
    trained = true.search_runs(["1"], "tags.stage = 'distillation@little'")[0].info.run_id
    assert version.tags["run.distillation/little"] == trained
    assert "run.base" not in version.tags
    assert (version.tags["kind"], version.tags["git.commit"]) == ("student", "c" * 40)
    assert version.description == "# little"
    run, model = true.get_run(version.run_id), true.get_logged_model(version.source.removeprefix("models:/"))
    assert [(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs] == [(DATA[0], DATA[1][:32])]
    assert {(one.key, one.value, one.dataset_name) for one in model.metrics} == {
        ("pass_at_1", 0.75, DATA[0]),
        ("sum.pass_at_1", 0.5, DATA[0]),
    }


def test_an_alias_that_people_have_moved_stays_and_a_new_release_is_a_candidate(project: Path) -> None:
    assert registered(project).aliases == ("candidate", "champion")
    (project / "little" / "README.md").write_text("better")
    write_checksums(project / "little")
    better = submission(project).digest
    assert registered(project, digest=better) == Registered("little", NAME, 2, ("candidate",), True)
    client(project).set_registered_model_alias(NAME, "champion", "2")
    client(project).delete_registered_model_alias(NAME, "candidate")
    assert registered(project, digest=better) == Registered("little", NAME, 2, ("champion",), False)
    (project / "little" / "README.md").write_text("best")
    write_checksums(project / "little")
    assert registered(project, "always").aliases == ("candidate", "champion")
    assert [version.version for version in versions(project) if "registered" in version.tags]


def test_the_champion_is_loaded_without_a_pickle_and_answers(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import torch

    registered(project)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", ENVIRONMENT["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"])
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    torch.manual_seed(0)  # it samples, and may end at once
    [said] = loaded.predict(["1+1=?"])
    assert set(said) == {"thinking", "answer"}
    assert 1 <= len(said["thinking"]) <= 8 * len("<|assistant|>")
    [version] = versions(project)
    stored = Path(client(project).get_model_version_download_uri(NAME, version.version).removeprefix("file://"))
    files = {path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file()}
    assert {"MLmodel", "answering.py", "requirements.txt", "release/model.safetensors"} <= files
    assert not any(name.endswith((".pkl", ".pickle", ".bin", ".pt")) for name in files)
    assert sum(name.endswith(".safetensors") for name in files) == 1
