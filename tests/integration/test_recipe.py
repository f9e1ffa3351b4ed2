"""The real recipe, small: twice from scratch, by DVC and by the flow, and what a change makes stale."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.checkout import COMPILED
from flows.local import environment
from flows.travel import read_lock
from pipeline.model.checkpoint import load_model
from pipeline.model.remote import checkpoint_digest
from pipeline.model.tokenizer import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
YAML_FILE = YAML(typ="safe", pure=True)


def _clone(folder: Path) -> Path:
    """The project as it stands in the working tree, as a repository of its own, under the smallest profile.

    Compiled kernels come along, as they do to a worker's checkout.
    """
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    compiled = [str(file.relative_to(ROOT)) for file in ROOT.glob(COMPILED)]
    for name in filter(None, [*names, *compiled]):
        if (ROOT / name).is_file() and not name.startswith("tests/") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "params.yaml").write_bytes((ROOT / "infra" / "profiles" / "smoke.yaml").read_bytes())
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(folder) | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _clone(tmp_path_factory.mktemp("reproduced"))
    result = _run(folder, "dvc", "repro")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_flow_leaves_the_same_lock_in_another_folder(
    reproduced: Path, prefect_database: Path, tmp_path: Path
) -> None:
    folder = _clone(tmp_path)
    with (folder / "params.yaml").open("a") as params:
        params.write("machine: {parallel: 2}\n")  # stages may end in another order
    (folder / "runs" / "prefect").mkdir(parents=True)
    shutil.copy(prefect_database, folder / "runs" / "prefect")
    result = _run(folder, "flows.recipe")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (folder / "dvc.lock").read_bytes() == (reproduced / "dvc.lock").read_bytes()
    versions = json.loads((folder / "runs" / "registration" / "versions.json").read_text())
    assert {(one["release"], one["version"], *one["aliases"]) for one in versions} == {
        (name, 1, "candidate", "champion") for name in ("general_rl", "dense", "on-policy", "general_rl-int8")
    }


def test_nothing_runs_twice(reproduced: Path) -> None:
    before = {stage: (reproduced / "runs" / stage / "state.json").read_text() for stage in read_lock(reproduced)}
    assert _run(reproduced, "dvc", "repro").returncode == 0
    assert _run(reproduced, "dvc", "status", "--quiet").returncode == 0
    assert before == {stage: (reproduced / "runs" / stage / "state.json").read_text() for stage in before}


def test_models_are_checkpoints_with_a_tokenizer_and_what_they_activate(reproduced: Path) -> None:
    for stage in ("base", "cold_start", "reasoning_rl"):
        folder = reproduced / "artifacts" / stage / "model"
        metrics = json.loads((folder.parent / "metrics.json").read_text())
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        assert model.config.vocab_size == len(tokenizer)
        assert "<think>" in tokenizer.chat_template
        size = model.size()
        assert (metrics["parameters"], metrics["activated_parameters"]) == (size.total, size.activated)


def test_evaluation_says_pass_at_1_of_every_model_with_its_interval(reproduced: Path) -> None:
    metrics = json.loads((reproduced / "artifacts" / "evaluation" / "metrics.json").read_text())
    for model in ("base", "cold_start", "reasoning_rl"):
        low, mean, high = (metrics[f"{model}.pass_at_1{bound}"] for bound in ("_low", "", "_high"))
        assert 0 <= low <= mean <= high <= 1


def test_a_base_from_a_checkpoint_is_that_checkpoint(reproduced: Path, tmp_path: Path) -> None:
    source = reproduced / "artifacts" / "cold_start" / "model"
    folder = _clone(tmp_path)
    shutil.copytree(reproduced / "artifacts" / "curation", folder / "artifacts" / "curation")  # a dep of it
    params = YAML_FILE.load((folder / "params.yaml").read_text())
    params["base"] = {"kind": "checkpoint", "source": str(source), "digest": "0" * 64}
    for digest, status in (("0" * 64, 2), (checkpoint_digest(source), 0)):
        params["base"]["digest"] = digest
        with (folder / "params.yaml").open("w") as file:
            YAML_FILE.dump(params, file)
        result = _run(folder, "pipeline", "base")
        assert result.returncode == status, result.stderr
        assert ("Traceback" in result.stderr) is False
    weights = [path / "model.safetensors" for path in (source, folder / "artifacts" / "base" / "model")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
