"""What the policy is trained on: sampled completions with their advantages, packed into flat runs.

Shapes: p prompt tokens and n completion tokens of one sample; S samples, T tokens and P predictions of a run, where a
prediction is a token of a completion. A run's predictions stand in the order of its samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.generation.requests import Completion
from pipeline.training.batches import Batch, Example, pack


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One sample to train on."""

    tokens: np.ndarray  # (p + n,) int64
    prompt: int  # p
    advantage: float  # of each of its tokens: the reward comes at the end, and nothing is discounted
    engine: np.ndarray  # (n,) float32: log-probabilities that the rollout engine drew the completion with
    old: np.ndarray | None = None  # (n,) float32: those of the trainer before the rollout's first update
    weight: float = 0.0  # of each of its tokens in the loss of its minibatch
    experts: np.ndarray | None = None  # (p + n − 1, mixture layers, k): the rollout's choice, where it is recorded

    @classmethod
    def of(cls, prompt: Sequence[int], completion: Completion, advantage: float) -> Self:
        tokens = np.concatenate([np.asarray(prompt, dtype=np.int64), completion.tokens])
        return cls(tokens, len(prompt), advantage, completion.log_probabilities, experts=completion.experts)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def completion(self) -> int:
        """n"""
        return len(self.tokens) - self.prompt

    def example(self) -> Example:
        return Example(self.tokens, np.arange(len(self.tokens)) >= self.prompt)


@dataclass(frozen=True, slots=True, eq=False)
class PolicyBatch:
    """Trajectories as one flat run; everything of shape (P,) is float32 unless it says otherwise."""

    flat: Batch
    completions: Tensor  # (S,) int64: predictions of each sample
    sample: Tensor  # (P,) int64: whose prediction it is
    advantages: Tensor  # (P,)
    weights: Tensor  # (P,)
    engine: Tensor  # (P,)
    old: Tensor | None  # (P,)
    replay: tuple[Tensor, ...] | None  # (T, k) int64 for each mixture layer

    def to(self, device: torch.device) -> "PolicyBatch":
        return PolicyBatch(
            flat=self.flat.to(device),
            completions=self.completions.to(device),
            sample=self.sample.to(device),
            advantages=self.advantages.to(device),
            weights=self.weights.to(device),
            engine=self.engine.to(device),
            old=None if self.old is None else self.old.to(device),
            replay=None if self.replay is None else tuple(layer.to(device) for layer in self.replay),
        )


def policy_batch(trajectories: Sequence[Trajectory], *, replay: bool) -> PolicyBatch:
    """Lay trajectories end to end; `replay` asks for the rollout's expert choices, which must be recorded then."""
    completions = torch.tensor([trajectory.completion for trajectory in trajectories])
    sample = torch.arange(len(trajectories)).repeat_interleave(completions)
    experts = [trajectory.experts for trajectory in trajectories if trajectory.experts is not None]
    old = [trajectory.old for trajectory in trajectories if trajectory.old is not None]
    assert len(old) in (0, len(trajectories))
    assert not replay or len(experts) == len(trajectories), "the engine has to record its expert choices"
    return PolicyBatch(
        flat=pack([trajectory.example() for trajectory in trajectories]),
        completions=completions,
        sample=sample,
        advantages=torch.tensor([trajectory.advantage for trajectory in trajectories])[sample],
        weights=torch.tensor([trajectory.weight for trajectory in trajectories])[sample],
        engine=torch.from_numpy(np.concatenate([trajectory.engine for trajectory in trajectories])),
        old=torch.from_numpy(np.concatenate(old)) if old else None,
        replay=torch.from_numpy(np.concatenate(experts)).long().unbind(1) if replay else None,
    )
