"""A wrong params file is refused in words that name key, value and rule."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.errors import InputError
from pipeline.job import DAG_FILE, at, read_yaml
from pipeline.params import Follow, Machine, Rewards, Serving, load_params

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "params.yaml", *sorted((ROOT / "infra" / "profiles").glob("*.yaml"))]


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())


def _write(document: object, folder: Path) -> Path:
    path = folder / "params.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(document, file)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_is_valid(path: Path) -> None:
    load_params(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_order_of_keys_makes_no_difference(path: Path, tmp_path: Path) -> None:
    def backwards(part: Any) -> Any:
        match part:
            case dict():
                return {key: backwards(part[key]) for key in reversed(part)}
            case list():
                return [backwards(entry) for entry in part]
            case _:
                return part

    turned = tmp_path / "params.yaml"
    turned.write_text(json.dumps(backwards(read_yaml(path))))
    assert load_params(turned).model_dump_json() == load_params(path).model_dump_json()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_has_what_dvc_yaml_names(path: Path) -> None:
    """DVC refuses to run a stage whose params are not all written down."""
    stages, document = read_yaml(ROOT / DAG_FILE)["stages"].values(), read_yaml(path)
    named = {name for stage in stages for name in stage.get("do", stage).get("params", []) if "$" not in name}
    assert [name for name in named if at(document, name) is None] == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed: -1: Input should be greater than or equal to 0"),
        ("seed", "0", "seed: '0': Input should be a valid integer"),
        ("held_out", 1.5, "held_out: 1.5: Input should be less than 1"),
        ("bogus", 1, "bogus: 1: there is no such key"),
        ("cold_start.train.learning_rate", "fast", "cold_start.train.learning_rate: 'fast': Input should be a valid"),
        ("cold_start.train.learning_rate", float("inf"), "cold_start.train.learning_rate: inf: Input should be"),
        ("cold_start.train.dtype", "float8", "cold_start.train.dtype: 'float8': Input should be 'float32' or"),
        ("cold_start.train.beta2", 1.0, "cold_start.train.beta2: 1.0: Input should be less than 1"),
        ("cold_start.train", None, "cold_start.train: None: Input should be a valid dictionary"),
        ("curation.sources", [], "curation.sources: []: List should have at least 1 item"),
        ("curation.difficulty", {"min": 3.0, "max": 1.0}, "min 3.0 is above max 1.0"),
        ("curation.gates", {"min_task_share": 0.5, "max_task_share": 0.2}, "min_task_share 0.5 is above"),
        (
            "reasoning_rl.from",
            "general_sft",
            "reasoning_rl.from: 'general_sft': Input should be 'cold_start' or 'base'",
        ),
        ("reasoning_rl.start", "base", "reasoning_rl.start: 'base': there is no such key"),
        ("reasoning_rl.train.group", 1, "reasoning_rl.train.group: 1: Input should be greater than or equal to 2"),
        ("reasoning_rl.train.loss", {"old": "engine", "importance_cap": 2.0}, "importance_cap 2.0: must be null"),
        (
            "reasoning_rl.rewards",
            {"weights": {"length": 1.0}, "overlong_buffer": 500},
            "rewards.overlong_buffer 500 is above train.max_new_tokens",
        ),
        ("distillation.students", {}, "distillation.students: {}: Dictionary should have at least 1 item"),
        ("distillation.students.a@b", {}, "distillation.students.a@b.[key]: 'a@b': String should match pattern"),
        (
            "distillation.students.small.on_policy",
            {"steps": 1, "share": 0.5},
            "on_policy.share: 0.5: there is no such key",
        ),
        ("distillation.students.small.on_policy", {"lambda": 1.5}, "on_policy.lambda: 1.5: Input should be less than"),
        ("distillation.students.small.on_policy", {"beta": -0.1}, "on_policy.beta: -0.1: Input should be greater"),
        ("general_rl.preference.general", 0.99, "preference.general 0.99 leaves no checkable one of train.prompts"),
        ("general_rl.preference.last", 0.0, "general_rl.preference.last: 0.0: Input should be greater than 0"),
        ("general_rl.judge", {"url": "http://a:b@c", "model": "j", "max_calls": 1, "max_tokens": 1}, "match pattern"),
        ("general_rl.judge", {"url": "http://a", "model": "j", "max_tokens": 1}, "judge.max_calls"),
        ("preference.judges", "thinking", "preference.judges: 'thinking': Input should be 'answer' or 'output'"),
        ("preference.held_out", 1.0, "preference.held_out: 1.0: Input should be less than 1"),
        ("base.corpus.kind", "curated", "base.pretrain.corpus.curated.families: {"),
        ("base.corpus.kind", "web", "Input tag 'web' found using"),
        (
            "base.corpus.worked",
            1.5,
            "base.pretrain.corpus.generated.worked: 1.5: Input should be less than or equal to 1",
        ),
        ("base.tokenizer", {"kind": "byte_pair"}, "base.pretrain.tokenizer.byte_pair.vocabulary: "),
        ("base.tokenizer", {"kind": "byte_pair", "vocabulary": 265}, "vocabulary: 265: Input should be greater than"),
        ("base.tokenizer", {"kind": "words"}, "Input tag 'words' found using"),
        ("base.kind", "train", "Input tag 'train' found using 'kind' does not match"),
        ("evaluation.sampling.top_p", 0.0, "evaluation.sampling.top_p: 0.0: Input should be greater than 0"),
        ("evaluation.sampling", {"temperature": 0.0, "top_k": 5}, "top_k: 5 has no effect at temperature 0"),
        ("evaluation.sampling", {"temperature": 0.0, "min_p": 0.1}, "min_p: 0.1 has no effect at temperature 0"),
        (
            "evaluation.gates.stages",
            {"base": {"fall": 0.1}},
            "evaluation.gates.stages.base.[key]: 'base': Input should",
        ),
        (
            "evaluation.gates.stages.cold_start.fall",
            2.0,
            "cold_start.fall: 2.0: Input should be less than or equal to 1",
        ),
        ("evaluation.gates.students.keep", 1.5, "evaluation.gates.students.keep: 1.5: Input should be less than or"),
        (
            "evaluation.champion",
            {"samples": "a", "digest": "0"},
            "evaluation.champion.digest: '0': String should match",
        ),
        (
            "reasoning_rl.train.adapter",
            {"rank": 0, "alpha": 16, "targets": ["o_proj"]},
            "train.adapter.rank: 0: Input should be greater than or equal to 1",
        ),
        (
            "cold_start.train.adapter",
            {"rank": 8, "alpha": 16, "targets": ["lm_head"]},
            "train.adapter.targets.0.literal['q_proj','k_proj'",
        ),
        (
            "cold_start.train.adapter",
            {"rank": 8, "alpha": 16, "targets": ["up_proj"]},
            "targets: must name both gate_proj and up_proj or neither",
        ),
        (
            "base.train.adapter",
            {"rank": 8, "alpha": 16, "targets": ["o_proj"]},
            "train.adapter: must be null: a model trained from scratch",
        ),
        (
            "distillation.students.small.train.adapter",
            {"rank": 8, "alpha": 16, "targets": ["o_proj"]},
            "train.adapter: must be null with base.kind pretrain",
        ),
        (
            "distillation.students.small.on_policy",
            {
                "steps": 1,
                "prompts": 1,
                "max_new_tokens": 1,
                "learning_rate": 1e-3,
                "adapter": {"rank": 8, "alpha": 16, "targets": ["o_proj"]},
            },
            "on_policy.adapter: must be as train.adapter",
        ),
        (
            "deployment.variants.general_rl-pruned.recover.adapter",
            {"rank": 8, "alpha": 16, "targets": ["o_proj"]},
            "recover.adapter: must be null",
        ),
        ("distributed", {"zero": 2}, "zero and offload need more than one rank"),
        ("distributed", {"ranks": 2, "offload": "optimizer"}, "offload: optimizer needs zero of at least 1"),
        ("distributed", {"ranks": 2, "zero": 2, "offload": "all"}, "offload: all needs zero: 3"),
        ("distributed", {"ranks": 2, "zero": 4}, "distributed.zero: 4: Input should be 0, 1, 2 or 3"),
        ("distributed", {"ranks": 0}, "distributed.ranks: 0: Input should be greater than or equal to 1"),
        (
            "operation",
            {"approval": {"by": "nobody"}},
            "operation.approval.by: 'nobody': Input should be 'run' or 'alias'",
        ),
        ("operation", {"approval": {"hours": 0.0}}, "operation.approval.hours: 0.0: Input should be greater than 0"),
        ("operation", {"new_problems": 0}, "operation.new_problems: 0: Input should be greater than or equal to 1"),
        ("operation", {"fall": 5.0}, "operation.fall: 5.0: Input should be less than or equal to 1"),
        ("evaluation.sampling.stop", [""], "evaluation.sampling.stop.0: '': String should have at least 1 character"),
    ],
)
def test_a_broken_rule_names_key_value_and_rule(
    key: str, value: object, message: str, default: dict[str, Any], tmp_path: Path
) -> None:
    document = copy.deepcopy(default)
    *sections, last = key.split(".")
    section = document
    for name in sections:
        section = section[name]
    section[last] = value
    with pytest.raises(InputError) as error:
        load_params(_write(document, tmp_path))
    assert message in str(error.value)
    assert "params.yaml: " in str(error.value)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weights": {"accuracy": -1.0}}, "greater than or equal to 0"),
        ({"weights": {"accuracy": float("nan")}}, "greater than or equal to 0|finite number"),
        ({"weights": {"accuracy": float("inf")}}, "finite number"),
        ({"weights": {"accuracy": 0.0, "format": 0.0, "language": 0.0}}, "at least one weight must be above 0"),
        ({"weights": {"style": 1.0}}, "Extra inputs are not permitted"),
        ({"language": "English"}, "should match pattern"),
        ({"overlong_buffer": 0}, "greater than or equal to 1"),
        ({"repetition_ngram": 1}, "greater than or equal to 2"),
    ],
)
def test_rewards_that_cannot_be_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Rewards.model_validate(section)


def test_two_sources_of_one_name_are_refused(default: dict[str, Any], tmp_path: Path) -> None:
    document = copy.deepcopy(default)
    document["curation"]["sources"] *= 2
    with pytest.raises(InputError, match="names must differ"):
        load_params(_write(document, tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "document"),
        (b"- a\n- b\n", "document"),
        (b"seed: [1\n", "not valid YAML"),
        (b"seed: 0\nseed: 1\n", "not valid YAML"),
        (b"seed: \xff\n", "cannot be read"),
        (b"seed: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        (b"seed: 0\x00\n", "not valid YAML"),
        (b"seed: " + b"[" * 5_000, "nested too deeply"),
        (b"seed: &self [*self]\n", "nested too deeply"),
    ],
)
def test_a_file_that_is_no_params_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_params(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read"):
        load_params(tmp_path / "nowhere.yaml")


def test_scientific_numbers_are_numbers_as_in_dvc(default: dict[str, Any], tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("\nmachine:", "\nmachine:\n  stage_timeout_hours: 3e-6", 1)
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert load_params(path).machine.stage_timeout_hours == 3e-6


def test_an_address_with_credentials_is_refused_and_not_repeated(default: dict[str, Any], tmp_path: Path) -> None:
    changed = copy.deepcopy(default)
    changed["machine"]["store"] = "s3://KEY:hush@bucket/r1"
    with pytest.raises(InputError, match=r"machine\.store: .*must not hold credentials") as refused:
        load_params(_write(changed, tmp_path))
    assert "hush" not in str(refused.value)


def test_the_ledger_is_in_the_store_unless_params_say_otherwise() -> None:
    assert Machine().ledger == "runs/ledger"
    assert Machine(store="s3://bucket/r1/").ledger == "s3://bucket/r1/ledger"
    other = Serving(follow=Follow(ledger="records"))
    assert Machine(store="s3://bucket/r1", serving=other).ledger == "records"
