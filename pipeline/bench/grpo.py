"""Speed of a GRPO step: prompts of sums, groups of completions at temperature 1, a reward from the text's length.

Prompts, reward, KL coefficient and learning rate are those that a trainer in common use was measured with, so that the
two figures can be set side by side. The reward teaches nothing; it makes groups differ.
"""

import random
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from pipeline.bench.adapter import adapter_options
from pipeline.bench.peak import peak_after
from pipeline.errors import InputError
from pipeline.generation.requests import Completion
from pipeline.model.checkpoint import load_model
from pipeline.model.device import stage_device
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import GRPO, Health
from pipeline.records import Problem
from pipeline.rl import health
from pipeline.rl.grpo import Step
from pipeline.rl.learner import Learner
from pipeline.rl.rollout import Question, Questions, rollout_engine
from pipeline.training.memory import prepare


@dataclass(frozen=True, slots=True)
class Score:
    reward: float
    parts: Mapping[str, float]
    verdict: str = "unparseable"
    reason: str = "no answer is asked for"


def questions(count: int, tokenizer: PreTrainedTokenizerFast) -> list[Question]:
    """The first `count` sums of three numbers, as bare text without a chat template; always the same."""
    rng = random.Random(0)
    texts = ["+".join(str(rng.randint(10, 99)) for _ in range(3)) + "=?" for _ in range(count)]
    return [
        Question(
            Problem(str(number), "bench", "sum", text, "", "none", "", None, "train"),
            tuple(tokenizer.encode(text, add_special_tokens=False)),
        )
        for number, text in enumerate(texts)
    ]


def scores(pairs: Sequence[tuple[Question, Completion]]) -> list[Score]:
    rewards = [float(len(completion.text) % 7) for _, completion in pairs]
    return [Score(reward, {"length": reward}) for reward in rewards]


def trainer(
    model: Path,
    prompts: int,
    group: int,
    new_tokens: int,
    steps: int,
    dtype: str,
    rank: int,
    checkpoint_activations: bool,
) -> Step:
    """The checkpoint in `model` about to learn, and the questions of so many steps."""
    policy, tokenizer = load_model(model, device=stage_device()), load_tokenizer(model)
    options = GRPO.model_validate(
        {
            "steps": steps,
            "prompts": prompts,
            "group": group,
            "max_new_tokens": new_tokens,
            "learning_rate": 1e-6,
            "warmup": 0.0,
            "dtype": dtype,
            "slots": prompts * group,
            "checkpoint_activations": checkpoint_activations,
            "adapter": adapter_options(policy, rank),
            "loss": {"kl_coefficient": 0.001},
        }
    )
    prepare(policy, options, seed=0)
    line = Questions(questions(prompts * steps, tokenizer), seed=0)
    return Step(
        questions=line,
        generate=rollout_engine(policy, tokenizer, line, options, seed=0),
        judge=scores,
        learner=Learner(policy, options, seed=0),
        health=health.Health(Health()),
        options=options,
    )


def run(
    model: Path,
    prompts: int,
    group: int,
    new_tokens: int,
    steps: int,
    dtype: str,
    *,
    rank: int = 0,
    checkpoint_activations: bool = False,
) -> dict[str, float | int | str]:
    """`steps` ≥ 2 steps on the checkpoint in `model`, which stays as it is, of `prompts` groups of `group` samples.

    All weights learn, or with `rank` above 0 an adapter on every matrix.
    `step_s`, `rollout_s` and `update_s` are medians in seconds, the first step left out; the rates are of such a step;
    `peak_rss_mib` is the whole process's, `peak_tensors_mib` that of all tensors in two steps of a second training,
    its models' included.
    """
    if steps < 2:
        raise InputError(f"steps = {steps}: must be at least 2, as the first one is left out")
    make = partial(trainer, model, prompts, group, new_tokens, steps, dtype, rank, checkpoint_activations)
    step = make()
    seconds, figures = [], []
    for number in range(steps):
        start = time.perf_counter()
        figures.append(step.run(number, number * prompts).figures)
        seconds.append(time.perf_counter() - start)
    step_s = statistics.median(seconds[1:])
    samples = prompts * group
    tokens = statistics.mean(figure["length"] for figure in figures) * samples
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "dtype": dtype,
        "batch": samples,
        "new_tokens": new_tokens,
        "step_s": round(step_s, 4),
        "rollout_s": round(statistics.median(figure["rollout_s"] for figure in figures[1:]), 4),
        "update_s": round(statistics.median(figure["update_s"] for figure in figures[1:]), 4),
        "samples_per_s": round(samples / step_s, 2),
        "completion_tokens_per_s": round(tokens / step_s, 1),
        "peak_rss_mib": peak_rss,
        "peak_tensors_mib": peak_after(make, lambda other: [other.run(0, 0), other.run(1, prompts)]) // 2**20,
    }
