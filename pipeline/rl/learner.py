"""update: the policy learns from the trajectories of one rollout.

The trajectories are split into minibatches, each an update of the weights. A minibatch goes through the model in runs
of bounded size, and its losses are normalised by the counts of the whole minibatch, so cutting it changes nothing.
Without a KL term a sample whose advantage is exactly zero has no gradient. It counts for the normalisation, but is not
run through the model at all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.model.decoder import Decoder
from pipeline.params import GRPO, Distributed
from pipeline.rl.loss import PEAKS, SUMS, token_weight
from pipeline.rl.objective import PolicyObjective, Reference, Terms
from pipeline.rl.trajectories import Trajectory, in_families, policy_batch
from pipeline.training.batches import shared_runs
from pipeline.training.engine import ONE, Engine, State, make_engine
from pipeline.training.optimiser import learning_rate
from pipeline.training.pieces import piece_name
from pipeline.world import largest, total, world

Permit = Callable[[Mapping[str, float]], bool]
"""Asked with loss and gradient norm of a minibatch before its update: may the weights change?"""


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What one minibatch did."""

    loss: float
    gradient_norm: float  # before clipping
    updated: bool
    tokens: int  # predictions run backward
    sums: np.ndarray  # (SUMS,)
    peaks: np.ndarray  # (PEAKS,)
    imbalance: float  # busiest expert's load over the mean load, mean over layers; 0 in a dense model


@dataclass(frozen=True, slots=True)
class Minibatch:
    """The trajectories of one update, of which this rank runs its share."""

    samples: int  # on all ranks
    tokens: int  # likewise: predictions
    runs: list[tuple[list[Trajectory], float]]  # what goes through the model at once, and its weight


class Learner:
    """The policy, what updates it, and its reference where the loss has a KL term."""

    def __init__(
        self,
        policy: Decoder,
        options: GRPO,
        seed: int,
        distributed: Distributed = ONE,
        acting: Decoder | None = None,
    ) -> None:
        """`acting`, where that is not the policy itself, is what samples are drawn from: it follows the policy."""
        if options.replay_experts and policy.config.mixture is None:
            raise InputError("replay_experts = true: the model has no experts whose choice could be replayed")
        self._policy = policy
        self._options = options
        self._seed = seed
        self._acting = policy if acting is None else acting
        self._device = policy.unembedding.device
        self._reference = Reference(policy, options) if options.loss.kl_coefficient > 0 else None
        self._engine: Engine = make_engine(PolicyObjective(policy, options), options, distributed)
        self._renewals = 0  # of the reference: a run that went back in between makes up for one that it lost

    def update(self, trajectories: Sequence[Trajectory], step: int, permit: Permit) -> dict[str, float]:
        """One pass over the trajectories of step number `step`. Returns figures; without trajectories only some.

        A minibatch whose update is not permitted leaves the weights, and so do the rest of the step.
        """
        if self._reference is not None and (due := step // self._options.reference_every) > self._renewals:
            self._reference.become(self._policy, self._engine)
            self._renewals = due
        rate = learning_rate(self._options, step)
        minibatches = self._minibatches(trajectories, step)
        if len(minibatches) > 1 and self._options.loss.old == "trainer":
            minibatches = [self._with_old(minibatch) for minibatch in minibatches]
        reports: list[Report] = []
        for minibatch in minibatches:
            reports.append(self._learn(minibatch, rate, permit))
            if not reports[-1].updated:
                break
        self._let_act()
        return {"learning_rate": rate, **self._figures(reports)}

    def state(self) -> State:
        """The state itself, not a copy."""
        if self._reference is None:
            return self._engine.state()
        state = {**self._engine.state(), "reference": _share(self._reference.state())}
        if world().leads:
            state["counts"] = {"renewals": torch.tensor([self._renewals])}
        return state

    def load_state(self, state: State) -> None:
        self._engine.load_state(state)
        if self._reference is not None:
            self._reference.load_state(state["reference"])
            self._renewals = int(state["counts"]["renewals"])
        self._let_act()

    def _let_act(self) -> None:
        if self._acting is not self._policy:
            self._engine.copy(self._policy, self._acting)

    def finish(self, scratch: Path) -> None:
        """As `Engine.finish`."""
        self._engine.finish(scratch)

    def _minibatches(self, trajectories: Sequence[Trajectory], step: int) -> list[Minibatch]:
        """Trajectories in random parts of like size, with their tokens' weights in the loss of their part."""
        options = self._options
        order = np.random.default_rng([self._seed, step]).permutation(len(trajectories))
        minibatches = []
        for part in np.array_split(order, options.minibatches):
            chosen = [trajectories[index] for index in part]
            lengths = [trajectory.completion for trajectory in chosen]
            weigh = (options.loss.normalisation, options.max_new_tokens)
            weighted = [replace(one, weight=token_weight(one.completion, lengths, *weigh)) for one in chosen]
            if options.loss.old == "engine":
                weighted = [replace(one, old=one.engine) for one in weighted]
            if self._reference is None:
                weighted = [one for one in weighted if one.advantage != 0]
            if weighted:
                tokens = sum(trajectory.completion for trajectory in weighted)
                minibatches.append(Minibatch(len(weighted), tokens, self._runs(weighted)))
        return minibatches

    def _runs(self, trajectories: Sequence[Trajectory]) -> list[tuple[list[Trajectory], float]]:
        return shared_runs(trajectories, self._options.micro_batch_tokens, in_families)

    @torch.no_grad()
    def _with_old(self, minibatch: Minibatch) -> Minibatch:
        """The same with the log-probabilities that the policy gives them now, before the first update."""
        measured = []
        for run, weight in minibatch.runs:
            terms: Terms = self._engine(policy_batch(run, replay=self._options.replay_experts).to(self._device))
            parts = terms.log_probabilities.cpu().split([trajectory.completion for trajectory in run])
            old = [replace(one, old=part.numpy()) for one, part in zip(run, parts, strict=True)]
            measured.append((old, weight))
        return replace(minibatch, runs=measured)

    def _learn(self, minibatch: Minibatch, rate: float, permit: Permit) -> Report:
        """One update."""
        terms: list[tuple[Terms, float]] = []
        for run, weight in minibatch.runs:
            batch = policy_batch(run, replay=self._options.replay_experts).to(self._device)
            reference = None if self._reference is None else self._reference(batch)
            part: Terms = self._engine(batch, reference)
            balance = part.balance * (len(run) / minibatch.samples)
            self._engine.backward((part.policy.loss + self._options.balance_loss * balance) * weight)
            terms.append((part, weight))
        own = float(sum(part.policy.loss.item() * weight for part, weight in terms))
        loss = total(torch.tensor(own, dtype=torch.float64)).item()
        answers: list[bool] = []

        def ask(norm: float) -> bool:
            answers.append(permit({"loss": loss, "gradient_norm": norm}))
            return answers[-1]

        norm = self._engine.step(rate, ask)
        updated = all(answers) and math.isfinite(norm)
        loads = [part.load * int(weight) for part, weight in terms if part.load is not None]
        load = total(torch.stack(loads).sum(0)) if loads else None
        if updated and load is not None and self._policy.config.has_balance_bias:
            self._policy.update_balance(load, self._options.balance_rate)
        return Report(
            loss=loss,
            gradient_norm=norm,
            updated=updated,
            tokens=minibatch.tokens,
            sums=total(torch.stack([part.policy.sums * weight for part, weight in terms]).sum(0)).cpu().numpy(),
            peaks=largest(torch.stack([part.policy.peaks * weight for part, weight in terms]).amax(0)).cpu().numpy(),
            imbalance=0.0 if load is None else (load.amax(1) / load.float().mean(1)).mean().item(),
        )

    def _figures(self, reports: Sequence[Report]) -> dict[str, float]:
        """Means over all trained tokens, largest values, and means over minibatches."""
        tokens = sum(report.tokens for report in reports)
        if not reports:
            return {"trained_tokens": 0}
        figures = {
            **_measured(reports),
            "gradient_norm": max(report.gradient_norm for report in reports),
            "loss": float(np.mean([report.loss for report in reports])),
            "imbalance": float(np.mean([report.imbalance for report in reports])),
            "trained_tokens": tokens,
        }
        if self._options.loss.old == "engine":  # a later minibatch meets weights that the engine did not draw from
            figures |= {name: value for name, value in _measured(reports[:1]).items() if name.startswith("gap_")}
        if self._reference is None:
            del figures["kl"]
        return figures


def _measured(reports: Sequence[Report]) -> dict[str, float]:
    means = np.sum([report.sums for report in reports], axis=0) / sum(report.tokens for report in reports)
    peaks = np.max([report.peaks for report in reports], axis=0)
    return dict(zip(SUMS, means.tolist(), strict=True)) | dict(zip(PEAKS, peaks.tolist(), strict=True))


def _share(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's part of tensors that all ranks have; see `pieces`."""
    if world().alone:
        return dict(tensors)
    shares = {}
    for name, tensor in tensors.items():
        size = -(-tensor.numel() // world().size)
        start = size * world().rank
        if start < tensor.numel():
            shares[piece_name(name, start)] = tensor.detach().view(-1)[start : start + size]
    return shares
