"""Adapters: what is trained, what is saved, who reads it."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.model import native
from pipeline.model.adapter import Merged, adapted_weights, all_targets, attach, learning
from pipeline.model.adapter_files import ADAPTER
from pipeline.model.attention import PackedSequences
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.decoder import Decoder
from tests.unit.model.reference import CASES, decoder, positions_of, random_sequences, write_checkpoint

LENGTHS = [40, 9, 25]
CASES_OF_ALL_KINDS = (
    "deepseek-query-latent-groups",
    "deepseek-halves-bias-two-shared",
    "qwen3-moe-some-dense",
    "llama-biases-tied",
    "qwen2-tied",
)


def adapted(case: str, folder: Path | None = None) -> Decoder:
    """With an adapter on everything, as if it had learned."""
    model = decoder(case) if folder is None else load_model(folder)
    attach(model, 4, 8.0, all_targets(model), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, _, change in adapted_weights(model):
            change.b.normal_(0, 0.1, generator=generator)
    return model


def logits(model: Decoder) -> Tensor:
    tokens = torch.cat(random_sequences(LENGTHS))
    return model.logits(model(tokens, positions_of(LENGTHS), PackedSequences(LENGTHS)).hidden)


def test_an_adapter_begins_as_no_change_and_only_it_learns() -> None:
    model = decoder("deepseek-plain")
    before, size = logits(model), model.size()
    attach(model, 4, 8.0, all_targets(model), seed=0)
    assert torch.equal(logits(model), before)
    assert model.size() == size
    assert learning(model)
    assert all(".adapter." in name or "_adapter." in name for name in learning(model))
    logits(model).square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == set(learning(model))


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("case", CASES_OF_ALL_KINDS)
def test_gradients_are_those_of_the_merged_weights(case: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        monkeypatch.setattr(native, "usable", lambda *tensors: False)
    model = adapted(case) if kernels else adapted(case).double()
    logits(model).square().sum().backward()
    merged = Merged(model).decoder.requires_grad_(True)
    logits(merged).square().sum().backward()
    weights = dict(merged.named_parameters())
    for name, _, change in adapted_weights(model):
        whole = weights[name].grad
        assert whole is not None
        for found, wanted in (
            (change.a.grad, change.scale * change.b.mT @ whole),
            (change.b.grad, change.scale * whole @ change.a.mT),
        ):
            assert found is not None
            torch.testing.assert_close(
                found, wanted, atol=float(wanted.abs().max()) * (2e-5 if kernels else 1e-9), rtol=0
            )


@pytest.mark.parametrize("case", CASES_OF_ALL_KINDS)
def test_merged_equals_unmerged(case: str) -> None:
    model = adapted(case)
    plain = logits(decoder(case))
    merged = Merged(model)
    assert (logits(model) - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(merged.decoder), logits(model), atol=2e-5, rtol=0)
    with torch.no_grad():
        for _, _, change in adapted_weights(model):
            change.b.neg_()
    merged.refresh()
    torch.testing.assert_close(logits(merged.decoder), logits(model), atol=2e-5, rtol=0)


def test_merged_shares_what_is_not_adapted() -> None:
    model = decoder("deepseek-plain")
    attach(model, 2, 2.0, ["q_proj"], seed=0)
    merged = dict(Merged(model).decoder.named_parameters())
    own = {
        name
        for name, weight in model.named_parameters()
        if name in merged and merged[name].data_ptr() != weight.data_ptr()
    }
    assert own == {f"layers.{layer}.self_attn.q_proj.weight" for layer in range(3)}


def test_merged_of_a_model_without_an_adapter_is_that_model() -> None:
    model = decoder("qwen2-tied")
    assert Merged(model).decoder is model


def test_a_name_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(
        InputError, match="experts, q_a_proj: not in this llama model: must be among down_proj, gate_proj, "
    ):
        attach(decoder("llama-linear"), 2, 2.0, ["q_a_proj", "o_proj", "experts"], seed=0)


@pytest.mark.parametrize("case", CASES_OF_ALL_KINDS)
def test_what_is_saved_is_merged_and_peft_reads_the_adapter(case: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    write_checkpoint(case, tmp_path / "base")
    model = adapted(case, tmp_path / "base")
    save_model(model, tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged")), logits(Merged(model).decoder), atol=0, rtol=0)

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT only warns of tensors that it does not know
        warnings.filterwarnings("ignore", category=FutureWarning)
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "merged" / ADAPTER)
    tokens = random_sequences(LENGTHS)
    with torch.no_grad():
        found = torch.cat([theirs(part[None]).logits[0] for part in tokens])
    torch.testing.assert_close(found, logits(model), atol=2e-4, rtol=0)


def test_every_case_can_be_adapted_whole() -> None:
    for case in CASES:
        model = adapted(case)
        reached = {name for name, _, _ in adapted_weights(model)}
        matrices = {
            name for name, weight in model.layers.named_parameters() if weight.ndim > 1 and "adapter" not in name
        }
        assert {f"layers.{name}" for name in matrices if ".gate." not in name} == reached
