"""The plan of a project: measured once, chosen by the target, and said where nothing fits."""

import json
from pathlib import Path

import pytest

from pipeline.errors import EXIT_GATE, GateFailedError, exit_code
from pipeline.params import Sampling
from pipeline.planning import plan as planning
from pipeline.planning.measure import Load, Measured, Question, Way, measure
from pipeline.planning.plan import make_plan
from pipeline.planning.record import read_plan
from pipeline.planning.table import chosen_line, plan_table, rows
from pipeline.stages import deployment
from pipeline.tracking import read_run
from tests.project import PARAMS
from tests.unit.release.toys import job, make_project, params

SPEEDS = {"general_rl": 1000.0, "little": 4000.0}
LOAD = Load(
    (Question("1+1=?", "2", "numeric"), Question("Say 2.", "2", "exact")), 1, Sampling(max_new_tokens=6), 0, 0.5
)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    root = make_project(tmp_path / "project")
    deployment.run(params(), job(root))
    (root / "params.yaml").write_text(PARAMS)
    return root


class Fake:
    """Measures by a table, and counts how often it is asked."""

    def __init__(self, right: dict[str, bool]) -> None:
        self.right, self.asked = right, list[tuple[str, str]]()

    def __call__(self, folder: Path, way: Way, load: Load) -> Measured:
        name = folder.name
        self.asked.append((name, way))
        speed = SPEEDS[name] * (0.5 if way == "offload" else 1)
        memory = (200 if way == "memory" else 150) * 2**20
        right = tuple(self.right[name] for _ in load.questions)
        return Measured(right, speed, speed / 4, 0.01, 1000 / speed, memory, 2**20, memory, "a processor", "cpu")


def with_target(root: Path, target: str) -> None:
    text = PARAMS.replace("deployment: {", f"deployment: {{target: {target}, ")
    assert text != PARAMS
    (root / "params.yaml").write_text(text)


def test_the_cheapest_is_chosen_and_nothing_is_measured_twice(released: Path) -> None:
    fake = Fake({"general_rl": True, "little": True})
    made = make_plan(released, measured_by=fake)
    assert fake.asked == [("general_rl", "memory"), ("general_rl", "offload"), ("little", "memory")]
    assert made["chosen"] == {"release": "little", "way": "memory", "hot": None}
    assert made["candidates"][0]["cost"] == pytest.approx(0.10 / 3600 / 4000 * 1e6)
    assert made["measured"] == 3
    assert json.loads(json.dumps(made)) == read_plan(released)
    recorded = read_run(planning.load_params(released / "params.yaml").tracking, released, "plan")
    assert recorded.stage == "plan"

    with_target(released, "{memory: 160.0}")
    again = make_plan(released, measured_by=fake)
    assert len(fake.asked) == 3
    assert again["measured"] == 0
    assert again["chosen"] == {"release": "general_rl", "way": "offload", "hot": 0.25}
    make_plan(released, again=True, measured_by=fake)
    assert len(fake.asked) == 6


def test_where_nothing_fits_the_plan_is_written_and_the_message_says_by_how_much(released: Path) -> None:
    with_target(released, "{latency: 0.2}")
    with pytest.raises(GateFailedError, match=r"general_rl: latency 1\.000 s, 0\.800 above 0\.2") as error:
        make_plan(released, measured_by=Fake({"general_rl": True, "little": False}))
    assert "little: accuracy_loss 100.0 points, 98.0 above 2; latency 0.250 s, 0.050 above 0.2" in str(error.value)
    assert exit_code(error.value) == EXIT_GATE
    kept = read_plan(released)
    assert kept is not None
    assert kept["chosen"] is None
    assert all(one["misses"] for one in kept["candidates"])


def test_a_release_that_has_changed_is_measured_again(released: Path) -> None:
    fake = Fake({"general_rl": True, "little": True})
    make_plan(released, measured_by=fake)
    path = released / "artifacts" / "deployment" / "release.json"
    record = json.loads(path.read_text())
    record["releases"]["little"]["digest"] = "0" * 64
    path.write_text(json.dumps(record))
    assert make_plan(released, measured_by=fake)["measured"] == 1
    assert fake.asked[3:] == [("little", "memory")]


def test_the_table_names_every_candidate_and_the_chosen_one(released: Path) -> None:
    made = make_plan(released, measured_by=Fake({"general_rl": True, "little": True}))
    table = rows(made)
    assert [(row["release"], row["served from"]) for row in table] == [
        ("little", "memory"), ("general_rl", "memory"), ("general_rl", "offload"),
    ]  # fmt: skip
    assert [row[""] for row in table] == ["chosen", "", ""]
    assert plan_table(made).row_count == 3
    assert chosen_line(made) == "chosen for this machine: little, served from memory"
    offloaded = made | {"chosen": {"release": "general_rl", "way": "offload", "hot": 0.25}}
    assert chosen_line(offloaded).endswith("served from offload with machine.serving.hot: 0.25 in params.yaml")


def test_a_model_is_measured_in_a_process_of_its_own(released: Path) -> None:
    folder = released / "artifacts" / "deployment" / "general_rl"
    memory, offload = measure(folder, "memory", LOAD), measure(folder, "offload", LOAD)
    assert memory.right == offload.right == (False, False)
    for one in (memory, offload):
        assert min(one.speed, one.speed_alone) > 0
        assert 0 < one.first_token <= one.latency < 30
        assert 2**24 < one.before <= one.memory <= one.resident
        assert one.device_kind == "cpu"


def test_what_goes_wrong_there_is_said_here(released: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: not found"):
        measure(tmp_path, "memory", LOAD)


def test_offload_saves_memory_of_the_processes_own(tmp_path: Path) -> None:
    """On a model whose experts are most of it: 24 MiB in float32."""
    from pipeline import chat
    from pipeline.model.checkpoint import save_model
    from pipeline.model.config import ModelConfig
    from pipeline.model.decoder import Decoder
    from pipeline.model.tokenizer import character_tokenizer, save_tokenizer
    from tests.unit.release.toys import SPARSE

    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    large = {**SPARSE, "moe_intermediate_size": 512, "n_routed_experts": 128, "num_hidden_layers": 2}
    model = Decoder(ModelConfig.from_hf({**large, "vocab_size": len(tokenizer)}))
    model.init_weights(0)
    experts = 128 * 512 * 32 * 3 * 4
    for name, packed in (("whole", False), ("bytes", True)):
        save_model(model, tmp_path / name, packed=packed)
        save_tokenizer(tokenizer, tmp_path / name)
    used = {
        (name, way): (found := measure(tmp_path / name, way, LOAD)).memory - found.before
        for name in ("whole", "bytes")
        for way in ("memory", "offload")
    }
    whole = used["whole", "memory"]
    assert whole - used["whole", "offload"] > 0.8 * experts
    assert whole - used["bytes", "memory"] > 0.6 * experts
    assert whole - used["bytes", "offload"] > 0.8 * experts
