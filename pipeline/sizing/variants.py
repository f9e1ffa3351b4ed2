"""Releases made smaller: experts cut by the profile, trained a little after it, matrices packed as int8; and measured.

After the cut a model is fine-tuned, briefly, on the set that the students learn from: what rejection sampling kept.
Router and experts settle again; without it a balanced model loses much more than its unused share, as balancing has
made sure that no expert is unused (docs/right-sizing.md has figures). Packing comes last.
A variant answers the same held-out problems as the release that it comes from, with the same random numbers, so that
the two are compared problem by problem.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import polars as pl
from transformers import PreTrainedTokenizerFast

from pipeline.evaluation.choice import choose
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.metrics import measure, overall, per_problem
from pipeline.evaluation.paired import compare
from pipeline.evaluation.sampling import judge
from pipeline.files import atomic_folder
from pipeline.job import Job
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.decoder import Decoder
from pipeline.model.pruning import prune, require_prunable
from pipeline.params import Evaluation, Sizing, Variant
from pipeline.sizing.curve import keep
from pipeline.sizing.profile import Profile, profile, write_texts
from pipeline.training.examples import worked_examples
from pipeline.training.loop import train
from pipeline.training.memory import prepare

VARIANTS = "deployment.variants"
FIGURE = "pass_at_1"
Use = tuple[tuple[float, ...], ...]
"""For each mixture layer, each expert's share of the choices."""


@dataclass(frozen=True, slots=True)
class Model:
    """A release, or what is to be one, as a variant starts from it."""

    name: str
    load: Callable[[], Decoder]
    samples: pl.DataFrame  # what it said to the held-out problems, under its name in `model`
    model: str  # that name
    use: Use | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A variant, measured."""

    model: Model
    evaluation: dict[str, Interval]  # its figures, and `over_RELEASE`: pass@1 more than that of what it comes from


@dataclass(frozen=True, slots=True)
class Workshop:
    """What variants are made with."""

    tokenizer: PreTrainedTokenizerFast
    problems: pl.DataFrame  # of `Problem`s, both splits
    traces: pl.DataFrame  # of `Trace`s that a variant recovers on
    evaluation: Evaluation
    sizing: Sizing
    seed: int
    job: Job

    @property
    def asked(self) -> pl.DataFrame:
        """The held-out problems that a variant is asked."""
        return choose(self.problems, min(self.sizing.problems, self.evaluation.problems), 0)

    def options(self) -> Evaluation:
        samples = min(self.sizing.samples, self.evaluation.samples)
        return self.evaluation.model_copy(update={"samples": samples})

    def profile(self, model: Decoder) -> tuple[Profile, list[list[int]]]:
        """Of a sparse model on its own answers, and those."""
        sampling, count = self.evaluation.sampling, self.sizing.profile
        texts = write_texts(model, self.tokenizer, self.problems, count, sampling, self.seed)
        return profile(model, texts), texts

    def accuracy(self, model: Decoder) -> Interval:
        """pass@1 of one sample of each of the problems that variants are asked."""
        once = self.evaluation.model_copy(update={"samples": 1})
        samples, _ = judge("", model, self.tokenizer, self.asked, once, self.seed)
        return overall(measure(per_problem(samples), self.seed), "")[FIGURE]

    def make(self, name: str, variant: Variant, source: Model, known: Profile | None) -> Made:
        """Make and measure a variant of `source`, whose profile is `known` where experts are to be cut.

        Raises InputError where the model cannot be left with so many experts.
        """
        folder, use, kept = self.job.scratch / "variants" / name, source.use, None
        if variant.experts is not None:
            mixture = require_prunable(source.load().config.mixture, variant.experts, f"{VARIANTS}.{name}.experts")
            assert known is not None
            kept = keep(known, variant.experts, mixture)
            use = use_of(known, [one.tolist() for one in kept])
        if not folder.is_dir():  # an attempt that was stopped left whole variants only
            model = source.load()
            if kept is not None:
                model = self._recover(name, variant, prune(model, kept))
            with atomic_folder(folder) as temporary:
                save_model(model, temporary / "model", packed=variant.int8)
        load = partial(load_model, folder / "model")
        samples, _ = judge(name, load(), self.tokenizer, self.asked, self.options(), self.seed)
        return Made(Model(name, load, samples, name, use), self._figures(samples, name, source))

    def _recover(self, name: str, variant: Variant, model: Decoder) -> Decoder:
        if variant.recover is None:
            return model
        examples = worked_examples(self.tokenizer, self.problems, self.traces, model.config.max_position_embeddings)
        job = self.job

        def log(figures: Mapping[str, float], step: int) -> None:
            job.log({f"{name}/{figure}": value for figure, value in figures.items()}, step)

        train(
            prepare(model, variant.recover, self.seed),
            examples,
            variant.recover,
            seed=self.seed,
            scratch=job.scratch / "recovery" / name,
            log=log,
            meter=job.meter.part(name),
            title=f"deployment: {name}",
        )
        return model

    def _figures(self, samples: pl.DataFrame, name: str, source: Model) -> dict[str, Interval]:
        own = samples.with_columns(model=pl.lit(name))
        theirs = source.samples.filter(
            (pl.col("model") == source.model)
            & pl.col("problem_id").is_in(samples["problem_id"].implode())
            & (pl.col("number") < samples["number"].n_unique())
        ).with_columns(model=pl.lit(source.name))
        problems = per_problem(pl.concat([own, theirs]))
        measured = measure(problems.filter(pl.col("model") == name), self.seed)
        tasks = measured.filter((pl.col("task") != "") & (pl.col("difficulty") == "") & (pl.col("figure") == FIGURE))
        difference = compare(problems, name, source.name, self.seed).difference
        return {
            **overall(measured, name),
            f"over_{source.name}": difference,
            **{
                f"{row['task']}.{FIGURE}": Interval(row["mean"], row["low"], row["high"])
                for row in tasks.iter_rows(named=True)
            },
        }


def use_of(profile: Profile, kept: list[list[int]] | None = None) -> Use:
    """Shares of the choices, of all experts or of those that are kept, as they fell before the cut."""
    found = []
    for layer, choices in enumerate(profile.choices):
        own = choices if kept is None else choices[kept[layer]]
        found.append(tuple(round(float(share), 6) for share in own / own.sum().clamp_min(1)))
    return tuple(found)
