"""The deployment stage with variants, on small random models: what comes out, twice the same, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import InputError
from pipeline.files import digest
from pipeline.model.checkpoint import load_model, load_to_answer
from pipeline.model.stored import USE, hottest
from pipeline.params import Params, Variant
from pipeline.records import Problem, Trace, read_table, schema, write_table
from pipeline.release.record import read_record, release_folder, verify_checksums
from pipeline.stages import deployment
from tests.unit.release.toys import job, make_project
from tests.unit.release.toys import params as plain_params

RECOVER = {"steps": 2, "tokens_per_step": 60, "learning_rate": 1e-3}
VARIANTS = {
    "cut": {"of": "general_rl", "experts": 4, "recover": RECOVER},
    "bytes": {"of": "general_rl", "int8": True},
    "both": {"of": "cut", "int8": True},
    "little-bytes": {"of": "little", "int8": True},
}
SIZING = {"profile": 4, "problems": 5, "samples": 1, "curve": [0.5]}


def params(**variants: dict[str, Any]) -> Params:
    deployment_ = {"parity": {"problems": 5}, "sizing": SIZING, "variants": variants}
    return Params.model_validate(plain_params().model_dump(by_alias=True) | {"deployment": deployment_})


def project(root: Path) -> Path:
    make_project(root)
    path = root / "artifacts" / "curation" / "problems.parquet"
    more = [Problem(f"t{n}", "made", "sum", f"{n}+2=?", f"{n + 2}", "numeric", "", 1.0, "train") for n in range(8)]
    write_table(pl.concat([read_table(path, Problem), pl.DataFrame(more, schema=schema(Problem))]), path)
    traces = [Trace(f"t{n}", f"{n} and 2 make {n + 2}", f"{n + 2}", "made") for n in range(8)]
    write_table(
        pl.DataFrame(traces, schema=schema(Trace)), root / "artifacts" / "rejection_sampling" / "traces.parquet"
    )
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def released(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    root = tmp_path_factory.mktemp("released") / "project"
    shutil.copytree(trained, root)
    return root, deployment.run(params(**VARIANTS), job(root))


def test_variants_are_releases_with_figures_beside_what_they_come_from(
    released: tuple[Path, dict[str, float]],
) -> None:
    root, figures = released
    record = {release.name: release for release in read_record(root).releases}
    assert list(record) == ["general_rl", "little", *VARIANTS]
    assert {name: record[name].of for name in VARIANTS} == {
        "cut": "general_rl", "bytes": "general_rl", "both": "cut", "little-bytes": "little",
    }  # fmt: skip
    assert all(record[name].kind == "variant" for name in VARIANTS)
    assert record["cut"].parameters < record["bytes"].parameters == record["general_rl"].parameters
    assert record["cut"].trained == record["general_rl"].trained
    for name in VARIANTS:
        folder = release_folder(root, name)
        verify_checksums(folder, record[name].digest)
        assert {"mean", "low", "high"} == set(record[name].evaluation[f"over_{record[name].of}"])
        assert f"{name}.over_{record[name].of}_low" in figures
        assert f"`{record[name].of}` made smaller" in (folder / "README.md").read_text()
    assert figures["bytes.bytes"] < figures["general_rl.bytes"] * 0.6
    assert figures["both.bytes"] < figures["cut.bytes"]
    tables = {path.name for path in (root / "artifacts" / "deployment").glob("*.csv")}
    assert tables == {"experts.csv", "coverage.csv", "expert_tokens.csv", "pruning.csv"}


def test_a_cut_model_keeps_the_most_valuable_experts_and_has_learnt(released: tuple[Path, dict[str, float]]) -> None:
    root, _ = released
    whole, cut = (load_model(release_folder(root, name)) for name in ("general_rl", "cut"))
    assert cut.config.mixture is not None
    assert (cut.config.mixture.experts, cut.config.mixture.groups) == (4, 2)
    table = pl.read_csv(root / "artifacts" / "deployment" / "experts.csv")
    best = (
        table.with_columns(group=pl.col("expert") // 4).sort("contribution", descending=True).group_by("group").head(2)
    )
    theirs = whole.layers[1].mlp.gate.weight[sorted(best["expert"].to_list())]
    apart = (cut.layers[1].mlp.gate.weight - theirs).abs().max()
    assert 0 < apart < 0.02  # two steps of training away
    use = json.loads((release_folder(root, "cut") / USE).read_text())
    assert [len(layer) for layer in use] == [4]
    assert sum(use[0]) == pytest.approx(1, abs=1e-4)
    assert len(hottest(release_folder(root, "cut"), 0.5)[0]) == 2
    assert hottest(release_folder(root, "little"), 0.5) == []


def test_packed_variants_hold_the_rounded_numbers_of_what_they_come_from(
    released: tuple[Path, dict[str, float]],
) -> None:
    root, _ = released
    for name, of in (("bytes", "general_rl"), ("both", "cut"), ("little-bytes", "little")):
        assert any(
            key.endswith(".weight_packed") for key in load_file(release_folder(root, name) / "model.safetensors")
        )
        rounded, source = load_model(release_folder(root, name)), load_model(release_folder(root, of))
        for (key, one), other in zip(rounded.named_parameters(), source.parameters(), strict=True):
            assert (one - other).abs().max() <= other.abs().max() / 254 * 1.01, key
    hot = hottest(release_folder(root, "both"), 0.5)
    mapped = load_to_answer(release_folder(root, "both"), mapped=True, hot=hot)
    assert mapped.size() == load_model(release_folder(root, "cut")).size()


def test_a_second_run_writes_the_same_bytes(
    trained: Path, released: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(trained, root)
    torch.manual_seed(99)  # nothing is drawn from the global generator
    deployment.run(params(**VARIANTS), job(root))
    assert digest(root / "artifacts" / "deployment") == digest(released[0] / "artifacts" / "deployment")


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"general_rl": {"of": "little", "int8": True}}, "general_rl: must not be called as a release is"),
        ({"a": {"of": "b", "int8": True}}, "a.of: 'b': must be one of general_rl, little"),
        (
            {"a": {"of": "general_rl", "int8": True}, "b": {"of": "a", "experts": 4}},
            "b.experts: a is packed: cut the experts first",
        ),
    ],
)
def test_names_and_origins_are_checked_with_the_params(variants: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"deployment\.variants\.{message}"):
        params(**variants)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"of": "little", "experts": 4}, "little is a llama model: it has no experts to cut"),
        (
            {"of": "general_rl", "experts": 5},
            r"deployment\.variants\.cut\.experts: 5: must leave each of the n_group = 2",
        ),
    ],
)
def test_a_model_that_cannot_be_cut_so_is_named(
    trained: Path, tmp_path: Path, variant: dict[str, Any], message: str
) -> None:
    root = tmp_path / "project"
    shutil.copytree(trained, root)
    with pytest.raises(InputError, match=message):
        deployment.run(params(cut=variant), job(root))
    assert not (root / "artifacts" / "deployment").exists()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"of": "a"}, "must make something smaller"),
        ({"of": "a", "int8": True, "recover": RECOVER}, "recover: has no meaning without experts"),
    ],
)
def test_params_that_say_nothing_are_refused(variant: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Variant.model_validate(variant)
