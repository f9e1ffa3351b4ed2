"""How samples of a prompt are laid out to share it."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.rl.trajectories import in_families, policy_batch

from .toys import trajectories


@pytest.mark.parametrize("tokens", [1, 12, 40, 1000])
def test_runs_hold_every_sample_once_and_keep_to_their_size(tokens: int):
    items = trajectories(24, group=4)
    runs = list(in_families(items[::2] + items[1::2], tokens))
    assert sorted(id(one) for run in runs for one in run) == sorted(map(id, items))
    for run in runs:
        prompts = [one.shared for one in run]
        assert len(run) == 1 or sum(policy_batch(run, replay=False).flat.lengths) <= tokens
        assert sum(a != b for a, b in pairwise(prompts)) == len(set(prompts)) - 1  # neighbours


def test_a_shared_prompt_is_laid_out_once_and_every_completion_is_predicted():
    items = trajectories(8, group=4)
    batch = policy_batch(items, replay=False)
    flat, prompts = batch.flat, [items[0].prompt, items[4].prompt]
    assert min(prompts) > 1, "a prompt of one token has nothing to share"
    assert batch.families == (5, 5)
    assert len(flat.tokens) == sum(prompt - 1 for prompt in prompts) + sum(one.completion for one in items)
    assert flat.targets.tolist() == np.concatenate([one.tokens[one.prompt :] for one in items]).tolist()
    read = [one.tokens[one.prompt - 1 : -1] for one in items]
    assert flat.tokens[flat.predictors].tolist() == np.concatenate(read).tolist()
    assert batch.texts.sum() == sum(len(one) - 1 for one in items)


def test_samples_that_replay_other_experts_in_the_prompt_do_not_share_it():
    items = trajectories(3, group=3, experts=True)
    assert items[0].prompt > 1
    assert policy_batch(items, replay=True).families == (4,)
    assert items[1].experts is not None
    items[1].experts[0] = items[1].experts[0, ::-1]
    assert policy_batch(items, replay=True).families == (1, 1, 1)
