"""The loop: texts → the teacher's distribution at every token → the student a little nearer to it (algorithm 1).

A step's loss is the sum of the divergences over all its counted predictions divided by their number in the whole step,
so it does not depend on how the step is cut into micro-batches. A run that is killed and resumed ends in the same bits
as one that was not.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.gkd.divergence import divergence
from pipeline.gkd.teacher import Teacher
from pipeline.gkd.texts import Generate, Texts, is_students, prompt_length
from pipeline.job import UNMETERED, Log, Meter, Work
from pipeline.model.attention import PackedSequences
from pipeline.model.decoder import Decoder
from pipeline.model.flops import Arithmetic, arithmetic
from pipeline.params import Distributed, OnPolicy
from pipeline.training.batches import Batch, Example, micro_batches
from pipeline.training.engine import ONE, Engine, make_engine
from pipeline.training.loop import Counts, Figures, Summary, Terms, run_steps, update


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """A micro-batch of T tokens and what its teacher makes of it."""

    batch: Batch
    hidden: Tensor  # (T, D) of the teacher
    unembedding: Tensor  # (V, D) of the teacher

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.batch.lengths

    def to(self, device: torch.device) -> "Taught":
        return Taught(self.batch.to(device), self.hidden.to(device), self.unembedding.to(device))


class Objective(nn.Module):
    """The student's forward pass from tokens to divergence as one module, as `Engine` asks. The teacher is no part."""

    def __init__(self, decoder: Decoder, options: OnPolicy, vocabulary: int) -> None:
        """`vocabulary` tokens have a meaning; what rows the models have beyond them only fill their matrices up."""
        super().__init__()
        self.decoder = decoder
        self._options, self._vocabulary = options, vocabulary

    def forward(self, taught: Taught) -> Terms:
        batch = taught.batch
        output = self.decoder(batch.tokens, batch.positions, PackedSequences(batch.lengths))
        nats = divergence(
            (output.hidden, self.decoder.unembedding[: self._vocabulary]),
            (taught.hidden, taught.unembedding[: self._vocabulary]),
            batch.predictors,
            beta=self._options.beta,
            temperature=self._options.temperature,
        )
        return Terms.of(nats, output, batch.lengths)


@dataclass(frozen=True, slots=True)
class OnPolicyFigures(Figures):
    """What one step did; its loss is the divergence in nats per prediction. The last two are of the student's texts."""

    length: float  # tokens, mean; nan where it wrote none
    truncated: float  # share that hit the limit; nan likewise


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
    flops, teacher_flops = arithmetic(student), arithmetic(teacher.decoder)
    engine = make_engine(Objective(student, options, vocabulary), options, distributed)
    texts = Texts(examples, options, seed, generate)

    def take(step: int) -> tuple[OnPolicyFigures, Work]:
        if acting is not None and acting is not student:
            engine.copy(student, acting)
        chosen, written = texts[step]
        figures = train_step(engine, student, teacher, chosen, options, step)
        length = _mean([len(completion.tokens) for completion in written])
        truncated = _mean([completion.finish == "length" for completion in written])
        first = step * options.prompts
        own = [text for place, text in enumerate(chosen, first) if is_students(place, options.share)]
        done = OnPolicyFigures(**asdict(figures), length=length, truncated=truncated)
        return done, _work(flops, teacher_flops, chosen, own)

    def named(figures: Mapping[str, float], step: int) -> None:
        known = {name: value for name, value in figures.items() if not math.isnan(value)}
        log({"divergence": known.pop("loss"), **known}, step)

    student.train()
    summary = run_steps(engine, take, options, scratch=scratch, log=named, title=title, meter=meter)
    student.eval()
    return summary


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


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
) -> Figures:
    """One update of `student`, which `engine` runs, on the texts of step number `step`, counted from 0."""
    predictions = sum(int(example.counts[1:].sum()) for example in examples)
    counts = Counts(predictions, len(examples))
    taught = _taught(teacher, examples, options.micro_batch_tokens, student.unembedding.device)
    done = update(engine, student, taught, counts, options, step)
    return Figures(**asdict(done), tokens=sum(len(example) for example in examples), predictions=predictions)


def _taught(
    teacher: Teacher, examples: Sequence[Example], tokens: int, device: torch.device
) -> Iterator[tuple[Taught, float]]:
    """Micro-batches with their weights, each read by the teacher when its turn comes."""
    for batch, weight in micro_batches(examples, tokens):
        here = batch.to(device)
        yield Taught(here, teacher(here), teacher.unembedding), weight
