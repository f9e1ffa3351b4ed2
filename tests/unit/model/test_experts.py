import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.model import native
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder, Output
from pipeline.model.experts import Router, Routing, balance_loss, choose_experts, expert_load
from pipeline.model.parts import Mixture

from .reference import decoder, positions_of, random_sequences

LENGTHS = [9, 20, 4]


def run(model: Decoder, replay: list[Tensor] | None = None) -> Output:
    return model(torch.cat(random_sequences(LENGTHS)), positions_of(LENGTHS), PackedSequences(LENGTHS), replay)


def routing_of(scores: Tensor, top_k: int) -> Routing:
    chosen = scores.topk(top_k)
    return Routing(chosen.indices, chosen.values, scores)


@pytest.mark.parametrize("case", ["deepseek-query-latent-groups", "qwen3-moe-some-dense"])
def test_routing_is_reported_for_every_mixture_layer(case: str) -> None:
    model = decoder(case)
    output, mixture = run(model), model.config.mixture
    assert mixture is not None
    assert len(output.routing) == len(mixture.layers)
    load = expert_load(output.routing)
    assert load.shape == (len(mixture.layers), mixture.experts)
    assert (load.sum(1) == sum(LENGTHS) * mixture.top_k).all()
    for layer in output.routing:
        assert layer.experts.shape == layer.weights.shape == (sum(LENGTHS), mixture.top_k)
        assert all(len(set(row)) == mixture.top_k for row in layer.experts.tolist())


def test_groups_limit_where_a_token_may_go() -> None:
    output = run(decoder("deepseek-query-latent-groups"))  # 16 experts in 4 groups, 2 groups a token
    for layer in output.routing:
        assert all(len({expert // 4 for expert in row}) <= 2 for row in layer.experts.tolist())


def test_replay_uses_the_experts_given_and_gradients_reach_them() -> None:
    model = decoder("deepseek-plain")
    own = run(model)
    torch.testing.assert_close(run(model, [layer.experts for layer in own.routing]).hidden, own.hidden)
    other = [(layer.experts + 1) % 16 for layer in own.routing]
    replayed = run(model, other)
    assert all(torch.equal(layer.experts, given) for layer, given in zip(replayed.routing, other, strict=True))
    assert not torch.allclose(replayed.hidden, own.hidden, atol=1e-3)
    replayed.hidden.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_bias_counts_for_the_choice_only() -> None:
    mixture = Mixture((0,), 6, 2, 4, 0, "sigmoid", norm_topk_prob=False)
    router = Router(8, mixture)
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    before = router(x, None)
    router.e_score_correction_bias[3] = 10.0
    after = router(x, None)
    assert (after.experts == 3).any(1).all()
    torch.testing.assert_close(after.scores, before.scores)
    torch.testing.assert_close(after.weights, after.scores.gather(1, after.experts))


def test_balance_moves_against_the_violation_by_the_rate() -> None:
    model = decoder("deepseek-plain")
    load = torch.zeros(2, 16, dtype=torch.int64)
    load[0, :4] = 8  # a mean of 2: four experts above it, twelve below
    model.update_balance(load, rate=0.5)
    first, second = (buffer for buffer in model.buffers())
    assert first.tolist() == [-0.5] * 4 + [0.5] * 12
    assert second.tolist() == [0.0] * 16


def test_repeated_updates_even_out_the_load() -> None:
    model = decoder("deepseek-plain")
    before = expert_load(run(model).routing).float().std(1).mean()
    for _ in range(200):
        model.update_balance(expert_load(run(model).routing), rate=0.01)
    assert expert_load(run(model).routing).float().std(1).mean() < before / 2


def test_a_router_without_bias_cannot_be_updated() -> None:
    with pytest.raises(InputError, match="qwen3_moe"):
        decoder("qwen3-moe").update_balance(torch.ones(3, 12), 0.001)


def test_balance_loss_follows_the_report() -> None:
    scores = torch.rand(sum(LENGTHS), 5, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for sequence in scores.split(LENGTHS):
        chosen = torch.zeros_like(sequence).scatter(1, sequence.topk(2).indices, 1.0)
        share = 5 / (2 * len(sequence)) * chosen.sum(0)  # eq. 18
        probability = (sequence / sequence.sum(1, keepdim=True)).mean(0)  # eq. 19 and 20
        expected += float((share * probability).sum()) / len(LENGTHS)  # eq. 17
    assert balance_loss([routing_of(scores, 2)], LENGTHS).item() == pytest.approx(expected, rel=1e-5)
    assert balance_loss([routing_of(scores, 2)] * 3, LENGTHS).item() == pytest.approx(3 * expected, rel=1e-5)


def test_balance_loss_is_one_when_even_and_more_when_crowded() -> None:
    even = torch.eye(4).repeat(3, 1) + 0.1
    crowded = torch.eye(4)[:1].repeat(12, 1) + 0.1
    assert balance_loss([routing_of(even, 1)], [12]).item() == pytest.approx(1.0)
    assert balance_loss([routing_of(crowded, 1)], [12]).item() > 2


def test_a_shared_beginning_counts_in_each_of_its_texts() -> None:
    generator = torch.Generator().manual_seed(0)
    alone, trunk, one, other = (torch.rand(length, 6, generator=generator) for length in (3, 5, 4, 2))
    together = [routing_of(torch.cat((alone, trunk, one, other)), 2)]
    apart = [routing_of(torch.cat((alone, trunk, one, trunk, other)), 2)]
    balance = balance_loss(together, [3, 5, 4, 2], [1, 3])
    assert balance.item() == pytest.approx(balance_loss(apart, [3, 9, 7]).item(), rel=1e-5)
    texts = torch.tensor([1] * 3 + [2] * 5 + [1] * 6)
    assert torch.equal(expert_load(together, texts), expert_load(apart))


def test_a_dense_model_has_no_balance_loss() -> None:
    with pytest.raises(InputError, match="no mixture"):
        balance_loss((), LENGTHS)


@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (4, 2), (8, 8)])
@pytest.mark.parametrize("experts", [16, 40, 1024])
def test_the_kernel_chooses_what_torch_chooses(
    experts: int, groups: int, top_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(experts)
    scores, bias = torch.rand(50, experts, generator=generator), torch.randn(experts, generator=generator) / 10
    ours = choose_experts(scores, bias, 3, groups, top_groups)
    monkeypatch.setattr(native, "library", lambda: None)
    assert torch.equal(ours, choose_experts(scores, bias, 3, groups, top_groups))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_choose_experts_that_exist(poison: float) -> None:
    scores = torch.full((40, 16), poison)
    chosen = choose_experts(scores, None, 3, 4, 2)
    assert ((chosen >= 0) & (chosen < 16)).all()
