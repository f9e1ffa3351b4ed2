"""The champion against its own past."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import chat
from pipeline.errors import InputError
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer
from pipeline.promotion.standing import stand
from pipeline.state import read_state
from pipeline.tracking.store import connect
from tests.unit.serving.champions import DENSE, MODEL, Project

pytestmark = pytest.mark.slow  # MLflow's store, and a process of its own

ROOT = Path(__file__).parents[3]
SAMPLING = "evaluation: {problems: 1, samples: 1, sampling: {max_new_tokens: 8}}"


def below_by(project: Project, fall: float) -> Project:
    """The project, with so much allowed, and few tokens, as its model knows of no more."""
    file = project.root / "params.yaml"
    text = file.read_text().partition("operation:")[0]
    text = text.replace("evaluation: {problems: 1, samples: 1}", SAMPLING)
    file.write_text(text + f"operation: {{fall: {fall}}}\n")
    return project


def test_a_champion_below_its_floor_is_told_and_logged(tmp_path: Path) -> None:
    project = below_by(Project(tmp_path), 0.4)
    with pytest.raises(InputError, match="has no champion"):
        stand(tmp_path, tmp_path)
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    model = Decoder(ModelConfig.from_hf({**DENSE, "vocab_size": len(tokenizer)}))
    model.init_weights(0)  # it knows nothing; its registration says 50 %
    project.release(model)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.promotion", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 3, done.stderr
    assert f"{MODEL} version 1 has pass@1 0.0% (95 % interval 0.0% to 97.5%) on 1 held-out" in done.stderr
    assert "had 50.0% when it was registered; rule: not below 10.0% (operation.fall)" in done.stderr
    state = read_state(tmp_path, "champion")
    assert state is not None
    assert state.exit_code == 3
    assert state.metrics["floor"] == pytest.approx(0.1)

    stand(below_by(project, 0.5).root, tmp_path).require()
    client, experiment = connect(project.tracking, tmp_path)
    runs = client.search_runs([experiment], "tags.stage = 'champion'")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]  # of each night its own
    assert sorted(run.data.metrics["floor"] for run in runs) == pytest.approx([0.0, 0.1])
