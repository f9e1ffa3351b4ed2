"""What a rollout says about the policy, in figures and as a table for people."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.rl.scoring import ScoredGroup

TABLE_GROUPS = 4
"""Groups in a table of samples: enough to see what is rewarded, few enough to be read."""


def rollout_figures(groups: Sequence[ScoredGroup], first: int) -> dict[str, float]:
    """Means over all samples of a step; its first `first` groups are those of the first round.

    A part of the reward is a mean over the samples that have it, a verdict's share one over those that were verified.
    """
    samples = [sample for group in groups for sample in group.samples()]
    completions = [completion for completion, _ in samples]
    scores = [score for _, score in samples]
    verdicts = [score.verdict for score in scores if score.verdict is not None]
    parts = dict.fromkeys(part for score in scores for part in score.parts)

    def share(verdict: str) -> float:
        return _mean([given == verdict for given in verdicts]) if verdicts else 0.0

    return {
        "reward": _mean([score.reward for score in scores]),
        "reward_std": _mean([float(group.rewards.std()) for group in groups]),
        **{f"reward/{part}": _mean([score.parts[part] for score in scores if part in score.parts]) for part in parts},
        "right": share("right"),
        "unparseable": share("unparseable"),
        "timed_out": share("timed out"),
        "no_spread": _mean([not group.has_spread for group in groups[:first]]),
        "resampled": len(groups) - first,
        "length": _mean([len(completion.tokens) for completion in completions]),
        "truncated": _mean([completion.finish == "length" for completion in completions]),
        "prompts": len(groups),
        "samples": len(samples),
    }


def generated_tokens(groups: Sequence[ScoredGroup]) -> int:
    return sum(len(completion.tokens) for group in groups for completion, _ in group.samples())


def sample_table(groups: Sequence[ScoredGroup]) -> list[Mapping[str, str | float]]:
    """The first groups' samples, one a row, of checkable problems and of general ones alike where there are both."""
    general = [group for group in groups if group.question.problem.verifier == "none"]
    checkable = [group for group in groups if group.question.problem.verifier != "none"]
    shown = [*checkable[: TABLE_GROUPS - min(len(general), TABLE_GROUPS // 2)], *general][:TABLE_GROUPS]
    parts = dict.fromkeys(part for group in shown for score in group.scores for part in score.parts)
    return [
        {
            "prompt": group.question.problem.prompt,
            "gold": group.question.problem.gold,
            "completion": completion.text,
            "verdict": score.verdict or "",
            "reward": score.reward,
            **{part: score.parts.get(part, "") for part in parts},
            "tokens": len(completion.tokens),
            "finish": completion.finish,
            "reason": score.reason,
        }
        for group in shown
        for completion, score in group.samples()
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
