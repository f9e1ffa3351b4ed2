"""Every option of the loss against its formula, written out in plain floats."""

import math
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.params import PolicyLoss
from pipeline.rl.loss import (
    PEAKS,
    SUMS,
    clipped,
    divergence,
    importance,
    policy_loss,
    ratios,
    token_weight,
)

# Two samples of 3 tokens and 1 token; all log-probabilities by hand.
NOW = [[-0.5, -1.2, -2.0], [-0.7]]
OLD = [[-0.9, -1.0, -2.0], [-0.2]]
ENGINE = [[-0.8, -1.1, -2.3], [-0.25]]
REFERENCE = [[-0.4, -1.5, -1.9], [-0.7]]
ADVANTAGES = [1.5, -0.5]
LONGEST = 8
BETA = 0.3


def flat(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


def batch(options: PolicyLoss, old: list[list[float]] | None) -> Any:
    lengths = [len(row) for row in NOW]
    weights = [[token_weight(length, lengths, options.normalisation, LONGEST)] * length for length in lengths]
    return SimpleNamespace(
        completions=torch.tensor(lengths),
        sample=torch.tensor([0, 0, 0, 1]),
        advantages=flat([[advantage] * length for advantage, length in zip(ADVANTAGES, lengths, strict=True)]),
        weights=flat(weights),
        engine=flat(ENGINE),
        old=None if old is None else flat(old),
    )


def written_out(options: PolicyLoss, old: list[list[float]]) -> float:
    """The loss as the papers have it: loops over samples and tokens, the normalisation at the end."""
    means, sums = [], []
    for now, before, engine, reference, advantage in zip(NOW, old, ENGINE, REFERENCE, ADVANTAGES, strict=True):
        losses = []
        whole = math.exp(sum(a - b for a, b in zip(now, before, strict=True)) / len(now))
        for p, q, e, r in zip(now, before, engine, reference, strict=True):
            ratio = math.exp(p - q) if options.ratio == "token" else whole
            bounded = min(max(ratio, 1 - options.clip_low), 1 + options.clip_high)
            gain = min(ratio * advantage, bounded * advantage)
            if options.importance_cap is not None:
                gain *= min(math.exp(q - e), options.importance_cap)
            kl = {"k1": p - r, "k2": (p - r) ** 2 / 2, "k3": math.exp(r - p) - 1 - (r - p)}[options.kl]
            losses.append(-gain + options.kl_coefficient * kl)
        means.append(sum(losses) / len(losses))
        sums.append(sum(losses))
    return {
        "sequence": sum(means) / len(means),
        "token": sum(sums) / sum(len(row) for row in NOW),
        "constant": sum(sums) / (len(sums) * LONGEST),
    }[options.normalisation]


@pytest.mark.parametrize(
    ("normalisation", "ratio", "kl", "clip", "cap"),
    list(
        product(
            ["sequence", "token", "constant"],
            ["token", "sequence"],
            ["k1", "k2", "k3"],
            [(0.2, 0.2), (0.2, 0.28), (10.0, 10.0)],
            [None, 1.1],
        )
    ),
)
def test_the_loss_is_the_written_out_formula(
    normalisation: str, ratio: str, kl: str, clip: tuple[float, float], cap: float | None
):
    options = PolicyLoss.model_validate(
        {
            "normalisation": normalisation, "ratio": ratio, "kl": kl, "kl_coefficient": BETA,
            "clip_low": clip[0], "clip_high": clip[1], "importance_cap": cap,
        }
    )  # fmt: skip
    terms = policy_loss(flat(NOW), torch.zeros(4), flat(REFERENCE), batch(options, OLD), options)
    assert terms.loss.item() == pytest.approx(written_out(options, OLD), abs=1e-6)


def test_token_weights_of_the_three_normalisations():
    assert token_weight(3, [3, 1], "sequence", 8) == pytest.approx(1 / 6)
    assert token_weight(3, [3, 1], "token", 8) == pytest.approx(1 / 4)
    assert token_weight(3, [3, 1], "constant", 8) == pytest.approx(1 / 16)


def test_ratios_of_tokens_and_of_whole_sequences():
    difference, lengths, sample = torch.tensor([0.3, -0.1, 0.4]), torch.tensor([2, 1]), torch.tensor([0, 0, 1])
    expected = [math.exp(0.3), math.exp(-0.1), math.exp(0.4)]
    assert ratios(difference, lengths, sample, "token").tolist() == pytest.approx(expected, abs=1e-6)
    expected = [math.exp(0.1), math.exp(0.1), math.exp(0.4)]
    assert ratios(difference, lengths, sample, "sequence").tolist() == pytest.approx(expected, abs=1e-6)


def test_a_sequence_ratio_moves_all_its_tokens_by_their_mean():
    difference = torch.tensor([0.3, -0.1, 0.4], requires_grad=True)
    ratio = ratios(difference, torch.tensor([2, 1]), torch.tensor([0, 0, 1]), "sequence")
    (gradient,) = torch.autograd.grad(ratio[0], difference)
    assert gradient.tolist() == pytest.approx([math.exp(0.1) / 2, math.exp(0.1) / 2, 0.0], abs=1e-6)


def test_clipping_holds_on_the_side_that_the_advantage_points_to():
    ratio, advantages = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([2.0, -2.0, 2.0, -2.0])
    # 1.28 · 2 is clipped; 1.5 · −2 is not; 0.5 · 2 is not; 0.8 · −2 is clipped.
    assert clipped(ratio, advantages, 0.2, 0.28).tolist() == pytest.approx([2.56, -3.0, 1.0, -1.6])


def test_divergences_by_schulmans_three_estimators():
    policy, reference = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert divergence(policy, reference, "k1").item() == pytest.approx(0.5)
    assert divergence(policy, reference, "k2").item() == pytest.approx(0.125)
    assert divergence(policy, reference, "k3").item() == pytest.approx(math.exp(-0.5) - 1 + 0.5, abs=1e-6)


def test_importance_weights_are_cut_at_their_cap_and_have_no_gradient():
    trainer = torch.tensor([-1.0, -1.0], requires_grad=True)
    weights = importance(trainer, torch.tensor([-0.5, -4.0]), cap=2.0)
    assert weights.tolist() == pytest.approx([math.exp(-0.5), 2.0], abs=1e-6)
    assert not weights.requires_grad


def test_without_old_log_probabilities_the_ratio_is_one_and_the_gradient_that_of_the_policy():
    options = PolicyLoss(kl_coefficient=0.0, normalisation="token")
    now = flat(NOW).requires_grad_()
    terms = policy_loss(now, torch.zeros(4), None, batch(options, None), options)
    assert terms.loss.item() == pytest.approx(-(3 * 1.5 - 0.5) / 4)
    (gradient,) = torch.autograd.grad(terms.loss, now)
    assert gradient.tolist() == pytest.approx([-1.5 / 4] * 3 + [0.5 / 4])  # −A ∇log p
    assert terms.peaks[PEAKS.index("ratio_max")].item() == 1.0


def test_figures_are_sums_over_predictions_and_peaks():
    options = PolicyLoss(importance_cap=1.1, clip_low=0.2, clip_high=0.2)
    entropy = flat([[0.1, 0.2, 0.3], [0.4]])
    terms = policy_loss(flat(NOW), entropy, flat(REFERENCE), batch(options, OLD), options)
    sums = dict(zip(SUMS, terms.sums.tolist(), strict=True))
    peaks = dict(zip(PEAKS, terms.peaks.tolist(), strict=True))
    differences = [
        r - p for now, reference in zip(NOW, REFERENCE, strict=True) for p, r in zip(now, reference, strict=True)
    ]
    assert sums["entropy"] == pytest.approx(1.0)
    assert sums["kl"] == pytest.approx(sum(math.exp(d) - 1 - d for d in differences))
    assert sums["clipped_high"] == 1  # e^0.4 above 1.2, advantage positive
    assert sums["clipped_low"] == 1  # e^−0.5 below 0.8, advantage negative
    assert sums["gap_mean"] == pytest.approx(0.1 + 0.1 + 0.3 + 0.05)
    assert sums["importance_capped"] == 2  # e^0.1 and e^0.3 above 1.1
    assert peaks == {"ratio_max": pytest.approx(math.exp(0.4)), "gap_max": pytest.approx(0.3)}


def test_against_the_engine_the_gap_is_to_the_trainers_log_probabilities_of_now():
    options = PolicyLoss(old="engine", kl_coefficient=0.0)
    terms = policy_loss(flat(NOW), torch.zeros(4), None, batch(options, ENGINE), options)
    assert terms.loss.item() == pytest.approx(written_out(options, ENGINE), abs=1e-6)
    assert terms.sums[SUMS.index("gap_mean")].item() == pytest.approx(0.3 + 0.1 + 0.3 + 0.45)


def test_two_corrections_of_one_drift_are_refused():
    with pytest.raises(ValueError, match=r"importance_cap 2\.0: must be null with old: engine"):
        PolicyLoss(old="engine", importance_cap=2.0)
