"""The profile of a small sparse model against sums over its own routing."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.evaluation.intervals import Interval
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder
from pipeline.model.experts import MixtureOfExperts
from pipeline.sizing.curve import keep, pruning_curve
from pipeline.sizing.profile import MEASURES, Profile, profile
from tests.unit.generation.toys import TOKENIZER
from tests.unit.model.reference import decoder

TEXTS = [[3, 4, 5, 6, 7, 8], [9, 3, 3, 3], list(range(10, 60)), [3] * 30]


@pytest.fixture(scope="module")
def model() -> Decoder:
    return decoder("deepseek-query-latent-groups")


@pytest.fixture(scope="module")
def measured(model: Decoder) -> Profile:
    return profile(model, TEXTS)


@torch.no_grad()
def test_sums_are_those_of_every_choice(model: Decoder, measured: Profile) -> None:
    choices, weight, contribution = (torch.zeros(2, 16, dtype=torch.float64) for _ in range(3))
    by_token = torch.zeros(2, 61, 16)
    inputs: list[torch.Tensor] = []
    parts = [part for part in model.modules() if isinstance(part, MixtureOfExperts)]
    hooks = [part.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for part in parts]
    for text in TEXTS:
        inputs.clear()
        output = model(torch.tensor(text), torch.arange(len(text)), PackedSequences([len(text)]))
        for layer, (part, routing, x) in enumerate(zip(parts, output.routing, inputs, strict=True)):
            for token, (experts, weights) in enumerate(zip(routing.experts, routing.weights, strict=True)):
                for expert, share in zip(experts.tolist(), weights.tolist(), strict=True):
                    gate, up = (part.experts.gate_up_proj[expert] @ x[token]).chunk(2)
                    moved = (part.experts.down_proj[expert] @ (F.silu(gate) * up)).norm().item()
                    choices[layer, expert] += 1
                    weight[layer, expert] += share
                    contribution[layer, expert] += share * moved
                    by_token[layer, text[token], expert] += 1
    for hook in hooks:
        hook.remove()
    assert torch.equal(measured.choices, choices)
    assert torch.equal(measured.by_token.float(), by_token[:, measured.kinds])
    assert by_token.sum() == by_token[:, measured.kinds].sum()
    torch.testing.assert_close(measured.weight, weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(measured.contribution, contribution, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured.value("saliency"), contribution / choices.clamp_min(1), rtol=1e-4, atol=1e-5)


def test_tables_are_shares_of_their_layer(measured: Profile) -> None:
    experts, coverage, tokens = measured.experts(), measured.coverage(), measured.tokens(TOKENIZER)
    assert experts.height == 2 * 16
    assert experts.columns == ["layer", "expert", *MEASURES[:3]]
    for layer in measured.layers:
        own = experts.filter(layer=layer)
        assert own["choices"].sum() == pytest.approx(1, abs=1e-4)
        for name in ("choices", "contribution"):
            curve = coverage.filter(layer=layer, measure=name)["share"]
            assert curve.is_sorted()
            assert curve[0] == pytest.approx(own[name].max(), abs=1e-5)
            assert curve[-1] == pytest.approx(1, abs=1e-5)
        often = tokens.filter(layer=layer)
        assert often["token"].unique().to_list() == ["0"]  # token 3, the only one that comes 20 times
        assert 0.9 < often["share"].sum() <= 1.001


def test_a_profile_leaves_no_hook_behind(model: Decoder, measured: Profile) -> None:
    assert not any(part._forward_hooks for part in model.modules())
    assert torch.equal(profile(model, TEXTS).contribution, measured.contribution)


def test_the_curve_begins_at_the_whole_model_and_rises(model: Decoder, measured: Profile) -> None:
    asked: list[int] = []

    def accuracy(one: Decoder) -> Interval:
        assert one.config.mixture is not None
        asked.append(one.config.mixture.experts)
        return Interval(0.5, 0.4, 0.6)

    curve = pruning_curve(model, measured, TEXTS, [0.75, 0.5, 0.1, 0.5], accuracy)
    assert asked == [16, 12, 8]  # two of each of the four groups are the least
    assert curve["experts"].to_list() == [16] + [12] * 4 + [8] * 4
    assert curve["divergence"][0] == 0
    assert (curve.filter(experts=8)["divergence"] > 0).all()
    assert curve.filter(criterion="saliency")["pass_at_1"].null_count() == 2


def test_what_is_kept_is_worth_most_in_its_group(model: Decoder, measured: Profile) -> None:
    assert model.config.mixture is not None
    kept = keep(measured, 8, model.config.mixture, "choices")
    for layer, experts in enumerate(kept):
        for group in range(4):
            own = set(range(4 * group, 4 * group + 4))
            left = own & set(experts.tolist())
            assert len(left) == 2
            counts = measured.choices[layer]
            assert min(counts[list(left)]) >= max(counts[list(own - left)])
