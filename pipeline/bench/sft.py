"""Speed of supervised training: rows of worked sums, as many in each step, the whole text trained.

Lengths vary from 25 to 90 characters, as they do in real data. Rows, optimiser and learning rate are those that a
padding trainer was measured with, so that the two figures can be set side by side.
"""

import random
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.bench.adapter import adapter_options
from pipeline.bench.peak import peak_after
from pipeline.errors import InputError
from pipeline.model.checkpoint import load_model
from pipeline.model.decoder import Decoder
from pipeline.model.device import stage_device
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Training
from pipeline.training.batches import Example
from pipeline.training.engine import TorchEngine
from pipeline.training.examples import text_examples
from pipeline.training.loop import Figures, Objective, train_step
from pipeline.training.memory import prepare


def worked_sum(numbers: Sequence[int]) -> str:
    """A chain of sums of non-negative numbers, each written out digit by digit with carries."""
    total = numbers[0]
    lines = []
    for number in numbers[1:]:
        lines.append(f"{total}+{number}:{','.join(_column_sums(total, number))};{total + number}")
        total += number
    question = "+".join(map(str, numbers)) + "=?"
    return f"{question}<think>" + "\n".join(lines) + f"</think><answer>{total}</answer>"


def _column_sums(a: int, b: int) -> list[str]:
    """`digit+digit+carry=sum` for each column, the lowest first."""
    columns = []
    carry = 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        columns.append(f"{x}+{y}+{carry}={x + y + carry}")
        carry = (x + y + carry) // 10
    return columns


def rows(count: int) -> list[str]:
    """The first `count` training texts, always the same."""
    rng = random.Random(0)
    return [worked_sum([rng.randint(1, 99) for _ in range(rng.choice([2, 2, 3]))]) for _ in range(count)]


@dataclass(frozen=True)
class Trainer:
    """A checkpoint and the texts of so many steps; `step` trains on those of one."""

    decoder: Decoder
    engine: TorchEngine
    examples: Sequence[Example]
    batch: int
    options: Training

    def step(self, number: int) -> Figures:
        chosen = self.examples[number * self.batch : (number + 1) * self.batch]
        return train_step(self.engine, self.decoder, chosen, self.options, number)


def trainer(model: Path, batch: int, steps: int, dtype: str, rank: int, checkpoint_activations: bool) -> Trainer:
    decoder, tokenizer = load_model(model, device=stage_device()), load_tokenizer(model)
    texts = [text + tokenizer.eos_token for text in rows(batch * steps)]
    examples = text_examples(tokenizer, texts, decoder.config.max_position_embeddings)
    options = Training.model_validate(
        {
            "steps": steps,
            "tokens_per_step": sum(map(len, examples)),
            "learning_rate": 1e-4,
            "warmup": 0.0,
            "dtype": dtype,
            "checkpoint_activations": checkpoint_activations,
            "adapter": adapter_options(decoder, rank),
        }
    )
    prepare(decoder, options, seed=0)
    decoder.train()
    return Trainer(decoder, TorchEngine(Objective(decoder), options), examples, batch, options)


def run(
    model: Path, batch: int, steps: int, dtype: str, *, rank: int = 0, checkpoint_activations: bool = False
) -> dict[str, float | int | str]:
    """Train the checkpoint in `model` (it stays as it is) for `steps` ≥ 2 steps of `batch` rows.

    All weights learn, or with `rank` above 0 an adapter on every matrix.
    `tokens_per_s` counts the texts' tokens, without the end-of-sequence token that is trained too; `step_s` is the
    median in seconds, the first step left out; `peak_rss_mib` is the whole process's, `peak_tensors_mib` that of all
    tensors in two steps of a second training, its model's included.
    """
    if steps < 2:
        raise InputError(f"steps = {steps}: must be at least 2, as the first one is left out")
    make = partial(trainer, model, batch, steps, dtype, rank, checkpoint_activations)
    trained = make()
    tokens = sum(len(example) - 1 for example in trained.examples)
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        trained.step(step)
        seconds.append(time.perf_counter() - start)
    step_s = statistics.median(seconds[1:])
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "dtype": dtype,
        "batch": batch,
        "step_s": round(step_s, 4),
        "tokens_per_s": round(tokens / steps / step_s, 1),
        "peak_rss_mib": peak_rss,
        "peak_tensors_mib": peak_after(make, lambda other: [other.step(0), other.step(1)]) // 2**20,
    }
