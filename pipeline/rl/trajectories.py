"""What the policy is trained on: sampled completions with their advantages, packed into flat runs.

Shapes: p prompt tokens and n completion tokens of one sample; S samples, T tokens and P predictions of a run, where a
prediction is a token of a completion. A run's predictions stand in the order of its samples.
Different from the textbook: neighbours with the same prompt go through the model with the prompt in common, forwards
and backwards, as a family (`pipeline.model.families`). Its last token, which predicts each completion's first, is not
part of the trunk but of every branch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.generation.requests import Completion
from pipeline.model.families import membership
from pipeline.training.batches import Batch


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

    @property
    def shared(self) -> bytes:
        """What it has to have in common with a sample that the prompt is to be computed with."""
        experts = b"" if self.experts is None else self.experts[: self.prompt - 1].tobytes()
        return self.tokens[: self.prompt].tobytes() + experts


@dataclass(frozen=True, slots=True, eq=False)
class PolicyBatch:
    """Trajectories as one flat run; everything of shape (P,) is float32 unless it says otherwise."""

    flat: Batch  # of segments, of which `families` says how many belong together
    families: tuple[int, ...]
    texts: Tensor  # (T,) int64: samples that a token is part of
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
            families=self.families,
            texts=self.texts.to(device),
            completions=self.completions.to(device),
            sample=self.sample.to(device),
            advantages=self.advantages.to(device),
            weights=self.weights.to(device),
            engine=self.engine.to(device),
            old=None if self.old is None else self.old.to(device),
            replay=None if self.replay is None else tuple(layer.to(device) for layer in self.replay),
        )


def in_families(trajectories: Sequence[Trajectory], tokens: int) -> Iterator[list[Trajectory]]:
    """Trajectories in runs of at most `tokens` tokens, those of a prompt as neighbours.

    One of more tokens is a run of its own. Prompts of completions of like length stand together, so that attention
    finds large groups of them.
    """
    groups: dict[bytes, list[Trajectory]] = {}
    for one in trajectories:
        groups.setdefault(one.shared, []).append(one)
    run: list[Trajectory] = []
    size = 0
    for group in sorted(groups.values(), key=lambda group: max(map(len, group))):
        for one in sorted(group, key=len):
            known = bool(run) and run[-1].shared == one.shared
            if run and size + (one.completion if known else len(one)) > tokens:
                yield run
                run, size, known = [], 0, False
            run.append(one)
            size += one.completion if known else len(one)
    yield run


@dataclass(frozen=True, slots=True, eq=False)
class _Segment:
    """Tokens `first` to `last` - 1 of a trajectory, whose last token is only predicted."""

    of: Trajectory
    first: int
    last: int


def _families(trajectories: Sequence[Trajectory]) -> Iterator[list[_Segment]]:
    """Neighbours with the same prompt as one family, the others and those with nothing to share each for itself."""
    for _, group in groupby(trajectories, lambda one: one.shared):
        members = list(group)
        trunk = members[0].prompt - 1 if len(members) > 1 else 0
        branches = [_Segment(one, trunk, len(one) - 1) for one in members]
        if trunk:
            yield [_Segment(members[0], 0, trunk), *branches]
        else:
            yield from ([branch] for branch in branches)


def policy_batch(trajectories: Sequence[Trajectory], *, replay: bool) -> PolicyBatch:
    """Lay trajectories end to end; `replay` asks for the rollout's expert choices, which must be recorded then."""
    completions = torch.tensor([trajectory.completion for trajectory in trajectories])
    sample = torch.arange(len(trajectories)).repeat_interleave(completions)
    old = [trajectory.old for trajectory in trajectories if trajectory.old is not None]
    assert len(old) in (0, len(trajectories))
    assert not replay or all(one.experts is not None for one in trajectories), (
        "the engine has to record its expert choices"
    )
    families = list(_families(trajectories))
    segments = [segment for family in families for segment in family]
    sizes = tuple(map(len, families))
    _, part = membership(sizes, torch.device("cpu"))
    lengths = tuple(segment.last - segment.first for segment in segments)
    counts = [np.arange(segment.first, segment.last) >= segment.of.prompt - 1 for segment in segments]
    flat = Batch(
        tokens=_joined(segment.of.tokens[segment.first : segment.last] for segment in segments),
        positions=_joined(np.arange(segment.first, segment.last) for segment in segments),
        lengths=lengths,
        predictors=torch.from_numpy(np.concatenate(counts).nonzero()[0]),
        targets=_joined(trajectory.tokens[trajectory.prompt :] for trajectory in trajectories),
    )
    return PolicyBatch(
        flat=flat,
        families=sizes,
        texts=part.bincount().repeat_interleave(torch.tensor(lengths)),
        completions=completions,
        sample=sample,
        advantages=torch.tensor([trajectory.advantage for trajectory in trajectories])[sample],
        weights=torch.tensor([trajectory.weight for trajectory in trajectories])[sample],
        engine=_joined(trajectory.engine for trajectory in trajectories),
        old=_joined(old) if old else None,
        replay=_replay(segments) if replay else None,
    )


def _replay(segments: Sequence[_Segment]) -> tuple[Tensor, ...]:
    chosen = [one.of.experts[one.first : one.last] for one in segments if one.of.experts is not None]
    return _joined(chosen).long().unbind(1)


def _joined(parts: Iterable[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(list(parts)))
