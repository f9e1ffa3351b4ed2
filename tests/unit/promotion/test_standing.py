"""The champion against its own past."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import chat
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer
from pipeline.state import read_state
from pipeline.tracking.store import connect
from tests.unit.serving.champions import DENSE, MODEL, Project

pytestmark = pytest.mark.slow  # MLflow's store, and a process of its own

ROOT = Path(__file__).parents[3]


def stand(project: Project) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.promotion", str(project.root)],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_champion_below_its_floor_is_told_and_logged(tmp_path: Path) -> None:
    project = Project(tmp_path)
    with (tmp_path / "params.yaml").open("a") as params:
        params.write("operation: {fall: 0.4}\n")
    nobody = stand(project)
    assert (nobody.returncode, nobody.stderr.count("\n")) == (2, 1)

    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    model = Decoder(ModelConfig.from_hf({**DENSE, "vocab_size": len(tokenizer)}))
    model.init_weights(0)  # it knows nothing; its registration says 50 %
    project.release(model)
    done = stand(project)
    assert done.returncode == 3
    assert done.stderr.startswith(f"{MODEL} version 1 has pass@1 0.0% (95 % interval 0.0% to 0.0%) on 1 held-out")
    assert "had 50.0% when it was registered; rule: not below 10.0% (operation.fall)" in done.stderr
    state = read_state(tmp_path, "champion")
    assert state is not None
    assert state.exit_code == 3
    assert state.metrics["floor"] == pytest.approx(0.1)
    client, experiment = connect(project.tracking, tmp_path)
    [run] = client.search_runs([experiment], "tags.stage = 'champion'")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["registered"] == 0.5

    params_file = tmp_path / "params.yaml"
    params_file.write_text(params_file.read_text().replace("fall: 0.4", "fall: 0.5"))
    assert stand(project).returncode == 0
    assert json.loads((tmp_path / "runs" / "champion" / "state.json").read_text())["state"] == "finished"
    assert len(client.search_runs([experiment], "tags.stage = 'champion'")) == 2
