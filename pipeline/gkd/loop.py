"""The loop: texts → the teacher's distribution at every token → the student a little nearer to it (algorithm 1).

A step's loss is the sum of the divergences over all its counted predictions divided by their number in the whole step,
so it does not depend on how the step is cut into micro-batches. A run that is killed and resumed ends in the same bits
as one that was not.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.gkd.divergence import divergence
from pipeline.gkd.teacher import Teacher
from pipeline.gkd.texts import Generate, Texts, is_students, prompt_length
from pipeline.job import UNMETERED, Log, Meter, Work
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder
from pipeline.model.experts import balance_loss, expert_load
from pipeline.model.flops import Arithmetic, arithmetic
from pipeline.params import Distributed, OnPolicy
from pipeline.progress import Progress
from pipeline.training.batches import Batch, Example, micro_batches
from pipeline.training.checkpoints import Checkpoint, Checkpoints, until_checkpoint
from pipeline.training.engine import ONE, Engine, make_engine
from pipeline.training.loop import require_finite
from pipeline.training.optimiser import learning_rate
from pipeline.world import total

SMOOTHING = 0.9
"""Share of the old value in the running mean of the divergence: about the last 10 steps."""


class Terms(NamedTuple):
    """What one micro-batch says."""

    divergence: Tensor  # scalar, nats: sum over the predictions that count
    balance: Tensor  # scalar: sequence-wise balance loss, mean over sequences, sum over layers; 0 in a dense model
    load: Tensor | None  # (layers, E) int64: tokens per expert; None in a dense model


class Objective(nn.Module):
    """The student's forward pass from tokens to divergence as one module, as `Engine` asks. The teacher is no part."""

    def __init__(self, decoder: Decoder, options: OnPolicy, vocabulary: int) -> None:
        """`vocabulary` tokens have a meaning; what rows the models have beyond them only fill their matrices up."""
        super().__init__()
        self.decoder = decoder
        self._options, self._vocabulary = options, vocabulary

    def forward(self, batch: Batch, teacher_hidden: Tensor, teacher_unembedding: Tensor) -> Terms:
        output = self.decoder(batch.tokens, batch.positions, PackedSequences(batch.lengths))
        nats = divergence(
            (output.hidden, self.decoder.unembedding[: self._vocabulary]),
            (teacher_hidden, teacher_unembedding[: self._vocabulary]),
            batch.predictors,
            beta=self._options.beta,
            temperature=self._options.temperature,
        )
        if not output.routing:
            return Terms(nats, torch.zeros_like(nats), None)
        return Terms(nats, balance_loss(output.routing, batch.lengths), expert_load(output.routing))


@dataclass(frozen=True, slots=True)
class Summary:
    """Where a run stands. A function of its inputs: no times."""

    steps: int = 0
    tokens: int = 0
    divergence: float = 0.0  # running mean, nats per prediction

    def after(self, divergence: float, tokens: int) -> "Summary":
        share = SMOOTHING if self.steps else 0.0
        return Summary(self.steps + 1, self.tokens + tokens, share * self.divergence + (1 - share) * divergence)


def train(
    student: Decoder,
    examples: Sequence[Example],
    options: OnPolicy,
    *,
    teacher: Teacher,
    generate: Generate,
    vocabulary: int,
    seed: int,
    scratch: Path,
    log: Log,
    title: str,
    meter: Meter = UNMETERED,
    distributed: Distributed = ONE,
    acting: Decoder | None = None,
) -> Summary:
    """Train `student`, which `generate` samples from, in place; resumes from the newest whole checkpoint in `scratch`.

    `acting` is what `generate` samples from, where that is not the student itself: it follows the student.
    `scratch` must be this work's own. Raises RunStoppedError where the divergence or the gradient is no longer
    finite (nothing is saved then), and what `meter` raises after a checkpoint.
    """
    student.train()
    student_flops, teacher_flops = arithmetic(student), arithmetic(teacher.decoder)
    engine = make_engine(Objective(student, options, vocabulary), options, distributed)
    texts = Texts(examples, options, seed, generate)
    checkpoints, summary = Checkpoints(scratch), Summary()
    if (checkpoint := checkpoints.newest()) is not None:
        engine.load_state(checkpoint.state)
        _let_act(engine, student, acting)
        summary = Summary(**checkpoint.progress)
    meter.resume(summary.steps, until_checkpoint(options, summary.steps))
    with Progress(title, total=options.steps, unit="steps", done=summary.steps) as progress:
        while summary.steps < options.steps:
            start = time.perf_counter()
            chosen, written = texts[summary.steps]
            first = summary.steps * options.prompts
            own = [text for place, text in enumerate(chosen, first) if is_students(place, options.share)]
            figures = train_step(engine, student, teacher, chosen, options, summary.steps)
            _let_act(engine, student, acting)
            if written:
                figures["length"] = sum(len(completion.tokens) for completion in written) / len(written)
                figures["truncated"] = sum(completion.finish == "length" for completion in written) / len(written)
            figures["tokens_per_s"] = figures["tokens"] / (time.perf_counter() - start)
            summary = summary.after(figures["divergence"], int(figures["tokens"]))
            meter.count(_work(student_flops, teacher_flops, chosen, own))
            log(figures, summary.steps)
            progress.advance(1, f"divergence {summary.divergence:.4f} {figures['tokens_per_s']:,.0f} tokens/s")
            if summary.steps % options.checkpoint_every == 0:
                checkpoints.save(Checkpoint(summary.steps, asdict(summary), engine.state()))
                meter.keep(summary.steps, options.steps)
    engine.finish(scratch)
    student.eval()
    return summary


def _let_act(engine: Engine, student: Decoder, acting: Decoder | None) -> None:
    if acting is not None and acting is not student:
        engine.copy(student, acting)


def _work(student: Arithmetic, teacher: Arithmetic, texts: Sequence[Example], own: Sequence[Example]) -> Work:
    """One step's: the student trains on the texts, of which it wrote its own, and the teacher reads them all."""
    lengths = [len(text) for text in texts]
    predictions = sum(int(text.counts[1:].sum()) for text in texts)
    written = [(prompt_length(text), len(text) - prompt_length(text)) for text in own]
    return Work(
        trained_tokens=sum(lengths),
        generated_tokens=sum(count for _, count in written),
        flops=student.training(lengths, predictions)
        + teacher.forward(lengths, predictions)
        + sum(student.generation(prompt, [count]) for prompt, count in written),
    )


def train_step(
    engine: Engine, student: Decoder, teacher: Teacher, examples: Sequence[Example], options: OnPolicy, step: int
) -> dict[str, float]:
    """One update of `student`, which `engine` runs, on the texts of step number `step`, counted from 0.

    Returns `divergence` in nats per prediction, `gradient_norm` before clipping, `learning_rate`, `imbalance` (busiest
    expert's load over the mean load; 0 in a dense model), `tokens` put in and `predictions` that counted.
    """
    predictions = sum(int(example.counts[1:].sum()) for example in examples)
    own, loads = 0.0, []
    for batch, weight in micro_batches(examples, options.micro_batch_tokens):
        batch = batch.to(student.unembedding.device)
        part: Terms = engine(batch, teacher(batch), teacher.unembedding)
        balance = part.balance * (len(batch.lengths) / len(examples))
        engine.backward((part.divergence / predictions + options.balance_loss * balance) * weight)
        own += part.divergence.item() * weight
        if part.load is not None:
            loads.append(part.load * int(weight))
    rate = learning_rate(options, step)
    norm = engine.step(rate)
    load = total(torch.stack(loads).sum(0)) if loads else None
    figures = {
        "divergence": total(torch.tensor(own, dtype=torch.float64)).item() / predictions,
        "gradient_norm": norm,
        "learning_rate": rate,
        "imbalance": 0.0 if load is None else (load.amax(1) / load.float().mean(1)).mean().item(),
        "tokens": sum(len(example) for example in examples),
        "predictions": predictions,
    }
    require_finite(step, divergence=figures["divergence"], gradient_norm=norm)
    if load is not None and student.config.has_balance_bias:
        student.update_balance(load, options.balance_rate)
    return figures
