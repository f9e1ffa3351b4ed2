"""advantages: how much better than its group a completion did, and so what there is to train on.

Different from the textbook: no ε stands in the denominator. A group without spread is left out instead, from the loss
and from the counts that normalise it, whatever the KL term would have made of it (DAPO, arXiv 2503.14476, section 3.2:
its advantages are zero, and it would only thin out the others' gradient).
"""

from collections.abc import Sequence

import numpy as np

from pipeline.rl.scoring import ScoredGroup
from pipeline.rl.trajectories import Trajectory


def group_advantages(rewards: np.ndarray, *, scale_by_std: bool) -> np.ndarray:
    """Rewards (n,) of one group, which have spread -> advantages (n,).

    (r − mean) / std, std over the n samples: GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2). r − mean alone:
    Dr. GRPO (arXiv 2503.20783, section 3.2), so that questions of all but the same outcome do not count more than
    others.
    """
    centred = rewards - rewards.mean()
    return centred / rewards.std() if scale_by_std else centred


def advantages(groups: Sequence[ScoredGroup], *, scale_by_std: bool) -> list[Trajectory]:
    """The samples of all groups with spread, each with its advantage."""
    return [
        Trajectory.of(group.question.prompt, completion, float(advantage))
        for group in groups
        if group.has_spread
        for completion, advantage in zip(
            group.completions, group_advantages(group.rewards, scale_by_std=scale_by_std), strict=True
        )
    ]
