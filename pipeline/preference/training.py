"""Training a reward model on pairs: Bradley–Terry (1952), as in Ouyang et al. 2022, section 3.5.

loss = −mean log σ(score of the chosen answer − score of the rejected one) over all pairs of a step, however the step is
cut into micro-batches. Nothing is added to it unless `balance_loss` is set.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.job import UNMETERED, Log, Meter, Work
from pipeline.model.device import lent
from pipeline.model.flops import arithmetic
from pipeline.model.reward import RewardModel, Scale
from pipeline.params import Distributed, PairTraining
from pipeline.preference.pairs import BalancedPairs, Pair
from pipeline.training.batches import shared_runs
from pipeline.training.engine import ONE, Engine, make_engine
from pipeline.training.loop import Counts, Summary, Terms, Update, run_steps, update


@dataclass(frozen=True, slots=True, eq=False)
class PairBatch:
    """Pairs as one flat run of T tokens; a pair's chosen text stands before its rejected one."""

    tokens: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64: place inside the own text, from 0
    lengths: tuple[int, ...]  # of the texts, two for each pair

    def to(self, device: torch.device) -> "PairBatch":
        return PairBatch(self.tokens.to(device), self.positions.to(device), self.lengths)


def pack_pairs(pairs: Sequence[Pair]) -> PairBatch:
    """Lay pairs end to end."""
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    return PairBatch(
        tokens=torch.from_numpy(np.concatenate(texts)),
        positions=torch.cat([torch.arange(len(text)) for text in texts]),
        lengths=tuple(len(text) for text in texts),
    )


class PairObjective(nn.Module):
    """The forward pass from tokens to loss as one module, as `Engine` asks."""

    def __init__(self, reward: RewardModel) -> None:
        super().__init__()
        self.reward = reward

    def forward(self, batch: PairBatch) -> Terms:
        scores, output = self.reward(batch.tokens, batch.positions, batch.lengths)
        return Terms.of(bradley_terry(scores[::2], scores[1::2]), output, batch.lengths)


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Sum of −log σ(chosen − rejected) over scores (P,), a scalar in nats: P · log 2 where nothing is told apart."""
    return -F.logsigmoid(chosen - rejected).sum()


@dataclass(frozen=True, slots=True)
class PairFigures(Update):
    """What one step did; its loss is nats per pair."""

    tokens: int
    pairs: int
    chosen_longer: float  # share of the pairs whose chosen answer is the longer one, half of those of equal length


def train_reward(
    model: RewardModel,
    pairs: Sequence[Pair],
    options: PairTraining,
    *,
    seed: int,
    scratch: Path,
    log: Log,
    title: str,
    meter: Meter = UNMETERED,
    distributed: Distributed = ONE,
) -> Summary:
    """Train `model` in place, resuming from the newest whole checkpoint under `scratch`, which must be its own.

    Afterwards its scale is that of its scores for the answers of `pairs`. Raises InputError where `pairs` cannot be
    balanced by length, and what `meter` raises after a checkpoint.
    """
    line = BalancedPairs(pairs, options.pairs_per_step, seed)
    flops = arithmetic(model.decoder)
    device = next(model.parameters()).device
    engine = make_engine(PairObjective(model), options, distributed)

    def take(step: int) -> tuple[PairFigures, Work]:
        chosen = line[step]
        figures = train_step(engine, model, chosen, options, step)
        lengths = [len(text) for pair in chosen for text in (pair.chosen, pair.rejected)]
        return figures, Work(trained_tokens=figures.tokens, flops=flops.training(lengths, predictions=0))

    model.train()
    summary = run_steps(engine, take, options, scratch=scratch, log=log, title=title, meter=meter)
    model.eval()
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    scores = lent(model, device).raw_scores(texts).double()
    model.scale = Scale(model.scale.judges, scores.mean().item(), scores.std().item())
    return summary


def train_step(
    engine: Engine, model: RewardModel, pairs: Sequence[Pair], options: PairTraining, step: int
) -> PairFigures:
    """One update of `model`, which `engine` runs, on the pairs of step number `step`, counted from 0."""
    counts = Counts(len(pairs), 2 * len(pairs))
    done = update(engine, model.decoder, _micro_batches(pairs, options.micro_batch_tokens), counts, options, step)
    kinds = np.sign([pair.longer for pair in pairs])
    return PairFigures(
        **asdict(done), tokens=sum(map(len, pairs)), pairs=len(pairs), chosen_longer=float((1 + kinds).mean() / 2)
    )


def _micro_batches(pairs: Sequence[Pair], tokens: int) -> list[tuple[PairBatch, float]]:
    return [(pack_pairs(run), weight) for run, weight in shared_runs(pairs, tokens)]
