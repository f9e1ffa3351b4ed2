"""Supervised training: base (every token counts) and cold start (the completion counts).

A step's loss is the sum over all its counted predictions divided by their number in the whole step, so it does not
depend on how the step is cut into micro-batches. Added to it is the sequence-wise balance loss, and after each update
the routers' bias moves against the load (DeepSeek-V3 report, section 2.1.2).
The loop draws no random number. With the order a function of seed and step, a run that is killed and resumed ends in
the same bits as one that was not.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from pipeline.errors import RunStoppedError
from pipeline.job import UNMETERED, Log, Meter, Work
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder, Output
from pipeline.model.experts import balance_loss, expert_load
from pipeline.model.flops import arithmetic
from pipeline.params import Distributed, Optimisation, Training
from pipeline.progress import Progress
from pipeline.training.batches import Batch, Example, Steps, micro_batches
from pipeline.training.checkpoints import Checkpoint, Checkpoints, until_checkpoint
from pipeline.training.engine import ONE, Engine, make_engine
from pipeline.training.loss import cross_entropy
from pipeline.training.optimiser import learning_rate
from pipeline.world import total

SMOOTHING = 0.95
"""Share of the old value in the running mean of the loss: about the last 20 steps."""


class Terms(NamedTuple):
    """What one micro-batch says; a tuple, in which an engine finds the tensors that it has to watch."""

    loss: Tensor  # scalar: sum over what counts
    balance: Tensor  # scalar: sequence-wise balance loss, mean over sequences, sum over layers; 0 in a dense model
    load: Tensor | None  # (layers, E) int64: tokens per expert; None in a dense model

    @classmethod
    def of(cls, loss: Tensor, output: Output, lengths: Sequence[int]) -> "Terms":
        """A loss of a decoder's output on sequences of these lengths."""
        if not output.routing:
            return cls(loss, torch.zeros_like(loss), None)
        return cls(loss, balance_loss(output.routing, lengths), expert_load(output.routing))


class Objective(nn.Module):
    """The forward pass from tokens to loss as one module, as `Engine` asks."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: Batch) -> Terms:
        output = self.decoder(batch.tokens, batch.positions, PackedSequences(batch.lengths))
        nats = cross_entropy(output.hidden, self.decoder.unembedding, batch.predictors, batch.targets)
        return Terms.of(nats, output, batch.lengths)


@dataclass(frozen=True, slots=True)
class Update:
    """What one update of the weights did."""

    loss: float  # nats, mean over what counts
    balance_loss: float  # mean over sequences, sum over layers, without its factor
    imbalance: (
        float  # busiest expert's load over the mean load, mean over layers; 1 is even, 0 stands for a dense model
    )
    gradient_norm: float  # before clipping
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Figures(Update):
    """What one step of the supervised training did."""

    tokens: int  # put in
    predictions: int  # that counted


@dataclass(frozen=True, slots=True)
class Summary:
    """Where a training run stands. A function of its inputs: no times."""

    steps: int = 0
    tokens: int = 0
    loss: float = 0.0  # running mean, nats per counted prediction
    imbalance: float = 0.0  # of the last step


class Trained(Protocol):
    """What the loop has to know of a step's figures, a dataclass; all of them are logged."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def loss(self) -> float: ...
    @property
    def imbalance(self) -> float: ...
    @property
    def tokens(self) -> int: ...


def train(
    model: Decoder,
    examples: Sequence[Example],
    options: Training,
    *,
    seed: int,
    scratch: Path,
    log: Log,
    title: str,
    meter: Meter = UNMETERED,
    distributed: Distributed = ONE,
) -> Summary:
    """Train `model` in place, resuming from the newest whole checkpoint under `scratch`.

    `scratch` must be this work's own: what lies there is taken to come from the same model, examples, options and seed.
    Raises InputError where `tokens_per_step` does not hold the longest example, RunStoppedError where the loss or
    the gradient is no longer finite (nothing is saved then), and what `meter` raises after a checkpoint.
    """
    steps = Steps(examples, options.tokens_per_step, seed)
    flops = arithmetic(model)
    engine = make_engine(Objective(model), options, distributed)

    def take(step: int) -> tuple[Figures, Work]:
        chosen = steps[step]
        figures = train_step(engine, model, chosen, options, step)
        computed = flops.training([len(example) for example in chosen], figures.predictions)
        return figures, Work(trained_tokens=figures.tokens, flops=computed)

    model.train()
    summary = run_steps(engine, take, options, scratch=scratch, log=log, title=title, meter=meter)
    model.eval()
    return summary


def run_steps(
    engine: Engine,
    take: Callable[[int], tuple[Trained, Work]],
    options: Optimisation,
    *,
    scratch: Path,
    log: Log,
    title: str,
    meter: Meter,
) -> Summary:
    """`take` every step by its number, counted from 0; what it needs is in `engine` or a function of the number.

    Resumes from the newest whole checkpoint under `scratch`, which must be this work's own. Raises what `take` raises,
    and `meter` after a checkpoint.
    """
    checkpoints = Checkpoints(scratch)
    summary = _resume(checkpoints, engine)
    meter.resume(summary.steps, until_checkpoint(options, summary.steps))
    with Progress(title, total=options.steps, unit="steps", done=summary.steps) as progress:
        for step in range(summary.steps, options.steps):
            start = time.perf_counter()
            figures, work = take(step)
            seconds = time.perf_counter() - start
            summary = _advance(summary, figures)
            meter.count(work)
            log({**asdict(figures), "tokens_per_s": figures.tokens / seconds}, summary.steps)
            progress.advance(1, f"loss {summary.loss:.3f} {figures.tokens / seconds:,.0f} tokens/s")
            if summary.steps % options.checkpoint_every == 0:
                checkpoints.save(Checkpoint(summary.steps, asdict(summary), engine.state()))
                meter.keep(summary.steps, options.steps)
    engine.finish(scratch)
    return summary


def train_step(engine: Engine, model: Decoder, examples: Sequence[Example], options: Training, step: int) -> Figures:
    """One update of `model`, which `engine` runs, on the examples of step number `step`, counted from 0."""
    predictions = sum(int(example.counts[1:].sum()) for example in examples)
    counts = Counts(predictions, len(examples))
    done = update(engine, model, micro_batches(examples, options.micro_batch_tokens), counts, options, step)
    return Figures(**asdict(done), tokens=sum(len(example) for example in examples), predictions=predictions)


class Packed(Protocol):
    """A micro-batch: sequences laid end to end, which goes through the engine's module as it is."""

    @property
    def lengths(self) -> tuple[int, ...]: ...
    def to(self, device: torch.device) -> Self: ...


@dataclass(frozen=True, slots=True)
class Counts:
    """Of a whole step, all ranks' shares together."""

    losses: int  # that are summed up
    sequences: int


def update(
    engine: Engine,
    model: Decoder,
    batches: Iterable[tuple[Packed, float]],
    counts: Counts,
    options: Optimisation,
    step: int,
) -> Update:
    """One update of `model`, which the engine's module maps a micro-batch to `Terms` with; each has its weight.

    The loss is the sum over all ranks' micro-batches divided by the number of losses in the whole step.
    Raises RunStoppedError where the loss or the gradient is not finite; the weights are as before then.
    """
    device = model.unembedding.device
    losses, balances, loads = [], [], []
    for batch, weight in batches:
        part: Terms = engine(batch.to(device))
        loss, balance = part.loss * weight, part.balance * (weight * len(batch.lengths) / counts.sequences)
        engine.backward(loss / counts.losses + options.balance_loss * balance)
        losses.append(loss.detach())
        balances.append(balance.detach())
        if part.load is not None:
            loads.append(part.load * int(weight))
    rate = learning_rate(options, step)
    norm = engine.step(rate)
    load = total(torch.stack(loads).sum(0)) if loads else None
    sums = total(torch.stack([torch.stack(losses).sum(), torch.stack(balances).sum()]))
    figures = Update(
        loss=sums[0].item() / counts.losses,
        balance_loss=sums[1].item(),
        imbalance=0.0 if load is None else (load.amax(1) / load.float().mean(1)).mean().item(),
        gradient_norm=norm,
        learning_rate=rate,
    )
    require_finite(step, loss=figures.loss, gradient_norm=figures.gradient_norm)
    if load is not None and model.config.has_balance_bias:
        model.update_balance(load, options.balance_rate)
    return figures


def require_finite(step: int, **figures: float) -> None:
    """Raises RunStoppedError where one of them is not finite."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise RunStoppedError(
                f"step {step}: {name} = {value}: must be finite. To try: a lower learning_rate, a longer warmup, "
                f"dtype float32"
            )


def _resume(checkpoints: Checkpoints, engine: Engine) -> Summary:
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        return Summary()
    engine.load_state(checkpoint.state)
    return Summary(**checkpoint.progress)


def _advance(before: Summary, figures: Trained) -> Summary:
    smoothed = SMOOTHING * before.loss + (1 - SMOOTHING) * figures.loss
    return Summary(
        steps=before.steps + 1,
        tokens=before.tokens + figures.tokens,
        loss=smoothed if before.steps else figures.loss,
        imbalance=figures.imbalance,
    )
