"""What a step of GRPO computes, counted from its samples."""

from collections.abc import Sequence

from pipeline.job import Work
from pipeline.model.flops import Arithmetic
from pipeline.params import GRPO
from pipeline.rl.scoring import ScoredGroup
from pipeline.rl.trajectories import Trajectory


def step_work(
    flops: Arithmetic, groups: Sequence[ScoredGroup], trajectories: Sequence[Trajectory], options: GRPO
) -> Work:
    """Rollout and update of one step. An update that was left out counts as if it had been done: it was computed.

    The reference and, with several minibatches, the log-probabilities before the first one are a forward pass each.
    """
    referenced = options.loss.kl_coefficient > 0
    trained = [one for one in trajectories if referenced or one.advantage != 0]  # see pipeline.rl.learner
    recomputed = options.minibatches > 1 and options.loss.old == "trainer"
    lengths, predictions = [len(one) for one in trained], sum(one.completion for one in trained)
    passes = flops.passes + referenced + recomputed
    written = [
        (len(group.question.prompt), [len(completion.tokens) for completion in group.completions]) for group in groups
    ]
    return Work(
        trained_tokens=sum(lengths),
        generated_tokens=sum(sum(completions) for _, completions in written),
        flops=passes * flops.forward(lengths, predictions)
        + sum(flops.generation(prompt, completions) for prompt, completions in written),
    )
