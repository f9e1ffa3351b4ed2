"""One update against the whole formula, one sample at a time and with all logits."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.model.adapter import learning
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder
from pipeline.model.experts import balance_loss
from pipeline.params import GRPO
from pipeline.rl.learner import Learner
from pipeline.rl.objective import PolicyObjective, Reference
from pipeline.rl.trajectories import Trajectory, policy_batch
from pipeline.training.memory import prepare

from .toys import DENSE, SPARSE, decoder, grpo, trajectories

LOOSE = {"gradient_clip": 1e9, "learning_rate": 1e-3, "balance_loss": 0.1}


def always(figures: Mapping[str, float]) -> bool:
    return True


def gradients(model: Decoder, items: Sequence[Trajectory], options: GRPO) -> dict[str, torch.Tensor]:
    """Gradients of one update. The first moment after it is (1 − β₁) · gradient, as nothing is clipped."""
    learner = Learner(copy.deepcopy(model), options, seed=0)
    learner.update(items, 0, always)
    return {
        name.removeprefix("decoder.").removesuffix(":exp_avg"): value / (1 - options.beta1)
        for name, value in learner.state()["optimiser"].items()
        if name.endswith(":exp_avg")
    }


def log_probabilities(model: Decoder, item: Trajectory, options: GRPO, replay: bool = False):
    """log p of each completion token from all logits, and the output that they come from."""
    tokens = torch.from_numpy(item.tokens)
    length = len(item) - 1
    choice = torch.from_numpy(item.experts).long().unbind(1) if replay else None
    output = model(tokens[:-1], torch.arange(length), PackedSequences([length]), choice)
    distribution = torch.log_softmax(model.logits(output.hidden) / options.temperature, dim=1)
    return distribution[torch.arange(length), tokens[1:]][item.prompt - 1 :], output


def written_out(model: Decoder, items: Sequence[Trajectory], options: GRPO, replay: bool = False) -> torch.Tensor:
    """GRPO's loss per sequence with k3, on policy, plus the balance loss; the reference is the policy of now."""
    losses, balances = [], []
    for item in items:
        now, output = log_probabilities(model, item, options, replay)
        ratio = (now - now.detach()).exp()
        difference = now.detach() - now
        kl = difference.exp() - 1 - difference
        losses.append((-ratio * item.advantage + options.loss.kl_coefficient * kl).mean())
        if output.routing:
            balances.append(balance_loss(output.routing, [len(item) - 1]))
    loss = torch.stack(losses).mean()
    return loss + options.balance_loss * torch.stack(balances).mean() if balances else loss


@pytest.mark.parametrize(
    ("config", "replay"), [(SPARSE, False), (SPARSE, True), (DENSE, False)], ids=["sparse", "replay", "dense"]
)
@pytest.mark.parametrize("micro_batch_tokens", [1, 20, 16_384], ids=["one by one", "several", "at once"])
@pytest.mark.parametrize("group", [1, 3], ids=["prompts apart", "prompts shared"])
def test_an_update_is_the_written_out_formula_however_it_is_cut(
    group: int, micro_batch_tokens: int, replay: bool, config: Mapping
):
    options = grpo(
        {"kl_coefficient": 0.0 if replay else 0.3},  # the reference chooses its experts itself
        **LOOSE,
        temperature=0.8,
        micro_batch_tokens=micro_batch_tokens,
        replay_experts=replay,
    )
    model, items = decoder(config), trajectories(10, experts=replay, group=group)[1:]
    ours = gradients(model, items, options)
    loss = written_out(model, items, options, replay)
    reference = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for (name, _), gradient in zip(model.named_parameters(), reference, strict=True):
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_four_runs_give_the_gradient_of_one_big_batch():
    model, items = decoder(), trajectories(32)
    whole, cut = (
        gradients(model, items, grpo(**LOOSE, micro_batch_tokens=tokens))
        for tokens in (16_384, sum(map(len, items)) // 4 + 8)
    )
    for name, gradient in whole.items():
        difference = (cut[name] - gradient).norm() / gradient.norm().clamp(min=1e-9)
        assert difference < 1e-6 * 5, name


def test_without_kl_a_sample_of_no_advantage_counts_but_is_not_run():
    model, items = decoder(), trajectories()
    assert items[0].advantage == 0
    options = grpo({"kl_coefficient": 0.0}, **{**LOOSE, "balance_loss": 0.0})
    learner = Learner(copy.deepcopy(model), options, seed=0)
    figures = learner.update(items, 0, always)
    assert figures["trained_tokens"] == sum(item.completion for item in items[1:])
    assert "kl" not in figures
    assert "reference" not in learner.state()
    loss = written_out(model, items, options)
    assert figures["loss"] == pytest.approx(loss.item(), abs=1e-6)
    ours = gradients(model, items, options)
    reference = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for (name, _), gradient in zip(model.named_parameters(), reference, strict=True):
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_figures_of_an_update():
    model, items, options = decoder(), trajectories(), grpo()
    told = [log_probabilities(model, item, options) for item in items]
    gaps = torch.cat([now.detach() - torch.from_numpy(item.engine) for (now, _), item in zip(told, items, strict=True)])
    entropies = []
    for _, output in told:
        distribution = torch.log_softmax(model.logits(output.hidden), 1).detach()
        entropies.append(-(distribution.exp() * distribution).sum(1))
    predicted = torch.cat([e[item.prompt - 1 :] for e, item in zip(entropies, items, strict=True)])
    figures = Learner(model, options, seed=0).update(items, 0, always)
    assert figures["gap_mean"] == pytest.approx(gaps.abs().mean().item(), rel=1e-5)
    assert figures["gap_max"] == pytest.approx(gaps.abs().max().item(), rel=1e-5)
    assert figures["entropy"] == pytest.approx(predicted.mean().item(), rel=1e-5)
    assert figures["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the policy as it was
    assert (figures["ratio_max"], figures["clipped_low"], figures["clipped_high"]) == (1, 0, 0)
    assert figures["imbalance"] >= 1
    assert figures["gradient_norm"] > 0
    assert figures["learning_rate"] == options.learning_rate


def test_minibatches_are_updates_against_the_log_probabilities_before_the_first():
    items = trajectories(16)
    options = grpo({"kl_coefficient": 0.0}, minibatches=4, learning_rate=0.05)
    asked: list[Mapping[str, float]] = []

    def permit(figures: Mapping[str, float]) -> bool:
        asked.append(figures)
        return True

    model = decoder()
    figures = Learner(model, options, seed=0).update(items, 0, permit)
    assert len(asked) == 4
    assert figures["ratio_max"] > 1.05  # the first update has moved the policy away from what it was
    assert figures["gradient_norm"] == max(each["gradient_norm"] for each in asked)
    assert figures["loss"] == pytest.approx(np.mean([each["loss"] for each in asked]))
    # The gap is to the trainer as it was at the rollout, whatever the updates did since.
    before = decoder()
    told = [log_probabilities(before, item, options)[0].detach() - torch.from_numpy(item.engine) for item in items[1:]]
    assert figures["gap_max"] == pytest.approx(torch.cat(told).abs().max().item(), rel=1e-5)


def test_the_engines_log_probabilities_can_take_the_place_of_the_old_ones():
    items = trajectories()
    figures = Learner(decoder(), grpo({"old": "engine"}), seed=0).update(items, 0, always)
    assert figures["ratio_max"] > 1  # also in the first minibatch
    same = [replace(item, engine=log_probabilities(decoder(), item, grpo())[0].detach().numpy()) for item in items]
    figures = Learner(decoder(), grpo({"old": "engine"}), seed=0).update(same, 0, always)
    assert figures["ratio_max"] == pytest.approx(1, abs=1e-5)


def test_the_gap_to_the_engine_is_that_before_the_first_update() -> None:
    items = trajectories(16)
    same = [replace(item, engine=log_probabilities(decoder(), item, grpo())[0].detach().numpy()) for item in items]
    options = grpo({"old": "engine"}, minibatches=4, learning_rate=0.05)
    figures = Learner(decoder(), options, seed=0).update(same, 0, always)
    assert figures["ratio_max"] > 1.05
    assert figures["gap_max"] == pytest.approx(0, abs=1e-5)


def test_a_refused_update_leaves_weights_moments_and_routers():
    model, items = decoder(), trajectories(16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner = Learner(model, grpo(minibatches=4), seed=0)
    asked: list[float] = []

    def refuse(figures: Mapping[str, float]) -> bool:
        asked.append(figures["gradient_norm"])
        return False

    figures = learner.update(items, 0, refuse)
    assert asked == [figures["gradient_norm"]]  # the rest of the step is left out too
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert learner.state()["optimiser"] == {}


def test_a_loss_that_is_not_finite_changes_nothing_even_where_it_is_permitted():
    model, items = decoder(), trajectories()
    broken = [replace(item, advantage=math.nan) for item in items]
    before = model.embed_tokens.weight.clone()
    figures = Learner(model, grpo(), seed=0).update(broken, 0, always)
    assert math.isnan(figures["loss"])
    assert torch.equal(model.embed_tokens.weight, before)


def test_the_routers_bias_moves_against_the_load():
    model = decoder()
    Learner(model, grpo(balance_rate=0.01), seed=0).update(trajectories(), 0, always)
    biases = [buffer for name, buffer in model.named_buffers() if "e_score_correction_bias" in name]
    assert all(bias.abs().max() == pytest.approx(0.01) for bias in biases)


def test_the_reference_becomes_the_policy_every_so_many_steps():
    learner = Learner(decoder(), grpo(reference_every=2, learning_rate=0.05), seed=0)
    kl = [learner.update(trajectories(), step, always)["kl"] for step in range(4)]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[1] > 1e-4
    assert kl[2] == pytest.approx(0, abs=1e-6)
    assert kl[3] > 1e-4


def test_a_renewal_that_a_return_took_back_is_made_up_for():
    learner = Learner(decoder(), grpo(reference_every=2, learning_rate=0.05), seed=0)
    for step in range(2):
        learner.update(trajectories(), step, always)
    kept = {part: {name: value.clone() for name, value in values.items()} for part, values in learner.state().items()}
    learner.update(trajectories(), 2, always)  # renews the reference
    learner.load_state(kept)
    assert learner.update(trajectories(), 3, always)["kl"] == pytest.approx(0, abs=1e-6)


ADAPTER = {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts"]}


def adapted(options: GRPO) -> Decoder:
    return prepare(decoder(), options, seed=0)


def test_the_reference_of_an_adapted_policy_is_the_model_without_the_adapter():
    options = grpo(adapter=ADAPTER)
    policy, batch = adapted(options), policy_batch(trajectories(), replay=False)
    reference = Reference(policy, options)
    with torch.no_grad():
        for weight in learning(policy).values():
            weight.add_(0.1)
    base = Reference(decoder(), options)(batch)
    torch.testing.assert_close(reference(batch), base, atol=1e-6, rtol=0)
    assert (PolicyObjective(policy, options)(batch, base).log_probabilities - base).abs().max() > 0.01
    assert set(reference.state()) == set(learning(policy)), "no copy of the frozen weights"


def test_the_reference_of_an_adapted_policy_is_renewed():
    options = grpo(adapter=ADAPTER, reference_every=2, learning_rate=0.05)
    learner = Learner(adapted(options), options, seed=0)
    kl = [learner.update(trajectories(), step, always)["kl"] for step in range(4)]
    assert kl[1] > 1e-4
    assert kl[2] == pytest.approx(0, abs=1e-6)
    assert kl[3] > 1e-4


def test_a_learner_of_an_adapter_goes_on_from_its_state():
    options = grpo(adapter=ADAPTER, reference_every=2, learning_rate=0.05)
    learner = Learner(adapted(options), options, seed=0)
    for step in range(3):
        learner.update(trajectories(), step, always)
    kept = {part: {name: value.clone() for name, value in values.items()} for part, values in learner.state().items()}
    other = Learner(adapted(options), options, seed=0)
    other.load_state(kept)
    assert other.update(trajectories(), 3, always) == learner.update(trajectories(), 3, always)


def test_nothing_to_train_on_is_no_update():
    learner = Learner(decoder(), grpo(), seed=0)
    assert learner.update([], 0, lambda figures: pytest.fail("asked")) == {"learning_rate": 0.01, "trained_tokens": 0}


def test_replay_without_experts_is_refused():
    with pytest.raises(InputError, match="replay_experts = true: the model has no experts"):
        Learner(decoder(DENSE), grpo(replay_experts=True), seed=0)


@pytest.mark.parametrize("minibatches", [1, 3])
def test_bfloat16_stays_near_float32(minibatches: int):
    figures = [
        Learner(decoder(), grpo(dtype=dtype, minibatches=minibatches, learning_rate=1e-4), 0).update(
            trajectories(), 0, always
        )
        for dtype in ("float32", "bfloat16")
    ]
    assert figures[0]["entropy"] == pytest.approx(figures[1]["entropy"], rel=0.01)
    assert figures[0]["gradient_norm"] == pytest.approx(figures[1]["gradient_norm"], rel=0.1)
