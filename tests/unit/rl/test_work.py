"""What a step computes, counted by hand."""

import pytest

from pipeline.job import Work
from pipeline.model.flops import Arithmetic
from pipeline.rl.advantage import advantages
from pipeline.rl.rollout import rollout
from pipeline.rl.scoring import score
from pipeline.rl.work import step_work

from .toys import counted, decoder, grpo, judge, plain_engine, question

FLOPS = Arithmetic(token=100, pair=10, prediction=1)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"loss": {"kl_coefficient": 0.1}}, 4),
        ({"loss": {"kl_coefficient": 0.0}}, 3),
        ({"loss": {"kl_coefficient": 0.1}, "minibatches": 2}, 5),
        ({"loss": {"kl_coefficient": 0.1, "old": "engine"}, "minibatches": 2}, 4),
    ],
)
def test_rollout_reference_and_update_count(changes: dict[str, object], passes: int) -> None:
    options = grpo(**changes)
    groups = score(judge(counted), rollout(plain_engine(decoder()), [question(n) for n in range(4)], 0, options))
    trajectories = advantages(groups, scale_by_std=True)
    assert trajectories
    work = step_work(FLOPS, groups, trajectories, options)
    tokens = flops = generated = 0
    for one in trajectories:
        if options.loss.kl_coefficient or one.advantage:
            length = len(one.tokens)
            tokens += length
            flops += passes * (100 * length + 10 * sum(range(1, length + 1)) + one.completion)
    for group in groups:
        prompt = len(group.question.prompt)
        flops += 100 * prompt + 10 * sum(range(1, prompt + 1)) + 1
        for completion in group.completions:
            generated += len(completion.tokens)
            flops += sum(100 + 10 * (prompt + place) + 1 for place in range(1, len(completion.tokens)))
    assert work == Work(tokens, generated, flops)
