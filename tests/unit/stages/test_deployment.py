"""The deployment stage on small random models: what it writes, who can load it, and what a wrong export leads to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import GateFailedError, InputError, exit_code
from pipeline.files import digest
from pipeline.model.attention import PackedSequences
from pipeline.model.checkpoint import load_model
from pipeline.params import Sampling
from pipeline.release import bundle
from pipeline.release.export import generation_config, read_sampling
from pipeline.release.record import CHECKSUMS, read_record, release_folder, verify_checksums
from pipeline.rewards.versions import verifier_versions
from pipeline.stages import deployment
from tests.unit.release.toys import job, make_project, params

RELEASES = ("general_rl", "little")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def released(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("released") / "project"
    shutil.copytree(trained, root)
    figures = deployment.run(params(), job(root))
    assert figures["releases"] == len(RELEASES)
    assert {"general_rl.pass_at_1", "little.pass_at_1_low", "little.bytes"} <= set(figures)
    return root


def test_every_release_has_its_record_and_its_files_are_those_of_the_checksums(released: Path) -> None:
    record = read_record(released)
    teacher, student = record.releases
    assert [(one.name, one.kind, one.model) for one in record.releases] == [
        ("general_rl", "teacher", "general_rl"),
        ("little", "student", "distillation/little"),
    ]
    assert record.verifiers == {"numeric": verifier_versions()["numeric"]}
    assert list(record.upstream) == ["curation", "general_rl", "distillation"]
    assert teacher.trained == {"artifacts/general_rl/model": digest(released / "artifacts/general_rl/model")}
    assert teacher.activated_parameters < teacher.parameters
    assert student.activated_parameters == student.parameters
    assert set(teacher.evaluation["pass_at_1"]) == {"mean", "low", "high"}
    assert teacher.parity["same_texts"] == 1
    for one in record.releases:
        folder = release_folder(released, one.name)
        assert digest(folder / CHECKSUMS) == one.digest
        verify_checksums(folder, one.digest)
        assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} <= set(one.files)


@pytest.mark.parametrize("name", RELEASES)
def test_transformers_loads_a_release_with_equal_logits(released: Path, name: str) -> None:
    folder = release_folder(released, name)
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    tokens = torch.arange(3, 43) % 90
    with torch.no_grad():
        ours = load_model(folder)
        mine = ours.logits(ours(tokens, torch.arange(40), PackedSequences([40])).hidden)
        logits = theirs.eval()(tokens[None]).logits[0]
    assert logits.std() > 0.3
    assert (mine - logits).abs().max() <= 1e-4


def test_others_are_told_the_sampler_the_end_token_and_the_template(released: Path) -> None:
    folder = release_folder(released, "general_rl")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    sampler = model.generation_config
    assert (sampler.do_sample, sampler.temperature, sampler.top_p, sampler.top_k) == (True, 0.6, 0.95, 0)
    assert (sampler.max_new_tokens, sampler.eos_token_id, model.config.eos_token_id) == (12, 2, 2)
    assert read_sampling(folder) == params().evaluation.sampling
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1=?"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    written = model.generate(**prompt)[0, prompt["input_ids"].shape[1] :]
    assert 1 <= len(written) <= 12


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.0, top_p=1.0),
        Sampling(temperature=1.0, top_p=1.0, top_k=20, min_p=0.1, stop=["</answer>"]),
    ],
)
def test_a_sampler_survives_its_file(sampling: Sampling, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(generation_config(sampling)))
    assert read_sampling(tmp_path) == sampling


def test_the_card_says_what_it_is_how_good_and_where_from(released: Path) -> None:
    card = (release_folder(released, "little") / "README.md").read_text()
    release = read_record(released).releases[1]
    assert "A student of `general_rl`" in card
    assert f"| activated on a token | {release.activated_parameters:,} (100.0 %) |" in card
    assert "| pass@1 | 0.0 % | 0.0 % to 45.9 % |" in card
    assert f"judged by `numeric` version {verifier_versions()['numeric']}" in card
    assert release.trained["artifacts/distillation/little/model"][:16] in card
    assert digest(released / "artifacts" / "curation" / "problems.parquet")[:16] in card
    assert "these tasks alone: request, sum." in card


def test_a_second_run_writes_the_same_bytes(trained: Path, released: Path, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(trained, root)
    deployment.run(params(), job(root))
    assert digest(root / "artifacts" / "deployment") == digest(released / "artifacts" / "deployment")


def tampered(change: Callable[[Path], None]) -> Callable[..., None]:
    """An export that goes wrong for the student alone."""
    honest = bundle.export

    def export(model: object, tokenizer: object, sampling: object, folder: Path, packed: bool) -> None:
        honest(model, tokenizer, sampling, folder, packed=packed)  # type: ignore[arg-type]
        if folder.name == "little":
            change(folder)

    return export


def shift_a_norm(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 1.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_template(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<|assistant|>' }}", "'<|assistant|><think>' }}"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            shift_a_norm,
            r"little: trained weights and exported: log-probabilities lie 0\.\d+ nats apart \(99% of \d+ tokens, "
            r"at most 0\.\d+\): must be at most 0\.001 \(deployment\.parity\.log_probability\)",
        ),
        (other_template, "little: its chat template makes '<bos>.*<think>' of a prompt that was trained on as '<bos>"),
    ],
)
def test_an_export_that_is_another_model_is_no_release(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], message: str
) -> None:
    root = tmp_path / "project"
    shutil.copytree(trained, root)
    monkeypatch.setattr(bundle, "export", tampered(change))
    with pytest.raises(GateFailedError, match=message) as error:
        deployment.run(params(), job(root))
    assert exit_code(error.value) == 3
    assert not (root / "artifacts" / "deployment").exists()


def test_a_student_may_not_take_the_teachers_name(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(trained, root)
    folder = root / "artifacts" / "distillation"
    (folder / "little").rename(folder / "general_rl")
    plain = params()
    called = plain.distillation.model_copy(update={"students": {"general_rl": plain.distillation.students["little"]}})
    with pytest.raises(InputError, match=r"distillation\.students\.general_rl: must not be called"):
        deployment.run(plain.model_copy(update={"distillation": called}), job(root))
