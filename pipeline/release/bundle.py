"""One release from one trained model: export, parity gate, card, checksums."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.errors import InputError
from pipeline.evaluation.models import STUDENTS, Entry, final, find_models, is_student
from pipeline.files import digest, write_json
from pipeline.job import Meter
from pipeline.model.checkpoint import load_model
from pipeline.model.decoder import Decoder
from pipeline.model.stored import USE
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Parity, Sampling
from pipeline.release.card import Background, card
from pipeline.release.export import export
from pipeline.release.parity import Question, require_parity
from pipeline.release.record import CARD, Figures, Kind, Release, write_checksums

TEACHER = "The reasoning model at the end of DeepSeek-R1's recipe, after supervised and reinforcement learning."
STUDENT = "A student of `{teacher}`: a smaller model, fine-tuned on what the teacher's recipe wrote (as R1-Distill)."


@dataclass(frozen=True, slots=True)
class Source:
    """A trained model that is to be released."""

    name: str
    kind: Kind
    about: str  # one or two sentences for the card
    model: str  # what the evaluation calls it
    folder: Path  # its tokenizer and, but for a variant, its weights
    load: Callable[[], Decoder]
    of: str | None = None  # a variant: the release it is made from
    packed: bool = False  # matrices as int8
    use: Sequence[Sequence[float]] | None = None  # each mixture layer's experts: their share of the choices, if known


@dataclass(frozen=True, slots=True)
class Terms:
    """What is the same for every release of a run."""

    root: Path
    sampling: Sampling
    parity: Parity
    seed: int
    background: Background
    meter: Meter


def find_sources(root: Path, dependencies: Iterable[str], students: Iterable[str]) -> list[Source]:
    """The recipe's final model and its students, as a stage's dependencies name them.

    Raises InputError where two releases would have one name.
    """
    models = find_models(root, dependencies, students)
    teacher = final(models)
    sources = [_source(teacher, teacher.name, "teacher", TEACHER)]
    about = STUDENT.format(teacher=teacher.name)
    for entry in models:
        if is_student(entry.name):
            sources.append(_source(entry, entry.name.removeprefix(f"{STUDENTS}/"), "student", about))
    if teacher.name in [source.name for source in sources[1:]]:
        raise InputError(f"distillation.students.{teacher.name}: must not be called as the teacher's release is")
    return sources


def _source(entry: Entry, name: str, kind: Kind, about: str) -> Source:
    return Source(name, kind, about, entry.name, entry.folder, partial(load_model, entry.folder))


def figures_of(metrics: Mapping[str, float], model: str) -> dict[str, Figures]:
    """A model's figures that have an interval, from the evaluation's metrics.json: figure → mean, low, high."""
    own = {key.removeprefix(f"{model}."): value for key, value in metrics.items() if key.startswith(f"{model}.")}
    return {
        name: {"mean": value, "low": own[f"{name}_low"], "high": own[f"{name}_high"]}
        for name, value in own.items()
        if f"{name}_low" in own
    }


def build(
    source: Source, folder: Path, asked: Sequence[Question], evaluation: dict[str, Figures], terms: Terms
) -> Release:
    """Fill `folder` with the release of a model. Raises GateFailedError where the export is not that model."""
    model = source.load()
    size, config = model.size(), model.config
    export(model, load_tokenizer(source.folder), terms.sampling, folder, packed=source.packed)
    if source.use is not None:
        write_json(folder / USE, source.use)
    del model  # the gate loads one model after the other
    parity = require_parity(source.name, source.load, folder, asked, terms.parity, terms.seed, terms.meter)
    release = Release(
        name=source.name,
        digest="",
        kind=source.kind,
        of=source.of,
        model=source.model,
        trained={source.folder.relative_to(terms.root).as_posix(): digest(source.folder)},
        files={},
        parameters=size.total,
        activated_parameters=size.activated,
        evaluation=evaluation,
        parity=parity,
    )
    text = card(release, config, terms.sampling, terms.background, source.about)
    (folder / CARD).write_text(text, encoding="utf-8")
    value, files = write_checksums(folder)
    return replace(release, digest=value, files=files)
