"""The variants of a run's releases, in the order of params, as further sources; and the tables of making them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import polars as pl

from pipeline.errors import InputError
from pipeline.files import atomic_file
from pipeline.job import Job
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Params, Variant
from pipeline.records import Problem, Trace, read_table
from pipeline.release.bundle import Source
from pipeline.release.record import Figures
from pipeline.sizing.curve import pruning_curve
from pipeline.sizing.profile import Profile
from pipeline.sizing.variants import VARIANTS, Model, Workshop, use_of


@dataclass(frozen=True, slots=True)
class Sized:
    """All sources with their variants behind them."""

    sources: list[Source]
    samples: pl.DataFrame  # what all of them said to held-out problems
    evaluation: dict[str, dict[str, Figures]]  # of each variant, by its name
    tables: dict[str, pl.DataFrame]  # by file name: the teacher's profile and the curve of pruning

    def write(self, folder: Path) -> None:
        for name, table in self.tables.items():
            with atomic_file(folder / name) as temporary:
                table.write_csv(temporary)


def right_size(sources: Sequence[Source], samples: pl.DataFrame, params: Params, job: Job) -> Sized:
    """Make every variant of params.deployment.variants. Raises InputError where one cannot be made."""
    options = params.deployment
    found = Sized(list(sources), samples, {}, {})
    if not options.variants:
        return found
    problems = read_table(job.input("curation", "problems.parquet"), Problem)
    traces = read_table(job.input("rejection_sampling", "traces.parquet"), Trace)
    known = {source.name: source for source in sources}
    models = {source.name: Model(source.name, source.load, samples, source.model) for source in sources}
    profiles: dict[str, Profile] = {}
    for name, variant in options.variants.items():
        of = known[variant.of]
        shop = Workshop(
            load_tokenizer(of.folder), problems, traces, params.evaluation, options.sizing, params.seed, job
        )
        if variant.experts is not None and of.name not in profiles:
            profiles[of.name] = _profile(of, shop, found)
            models[of.name] = replace(models[of.name], use=use_of(profiles[of.name]))
        made = shop.make(name, variant, models[of.name], profiles.get(of.name))
        models[name] = made.model
        known[name] = Source(
            name, "variant", _about(variant, of), name, of.folder, made.model.load, of.name, variant.int8
        )
        found.evaluation[name] = {figure: asdict(interval) for figure, interval in made.evaluation.items()}
    both = pl.concat([samples, *(models[name].samples for name in options.variants)])
    return replace(found, sources=[replace(known[name], use=models[name].use) for name in known], samples=both)


def _profile(of: Source, shop: Workshop, found: Sized) -> Profile:
    """Of the first model that is cut, the profile and the curve are kept as tables."""
    model = of.load()
    if model.config.mixture is None:
        raise InputError(f"{VARIANTS}: {of.name} is a {model.config.model_type} model: it has no experts to cut")
    profile, texts = shop.profile(model)
    if not found.tables:
        found.tables["experts.csv"] = profile.experts()
        found.tables["coverage.csv"] = profile.coverage()
        found.tables["expert_tokens.csv"] = profile.tokens(shop.tokenizer)
        found.tables["pruning.csv"] = pruning_curve(model, profile, texts, shop.sizing.curve, shop.accuracy)
    return profile


def _about(variant: Variant, of: Source) -> str:
    done = []
    if variant.experts is not None:
        after = ", then fine-tuned for a short time" if variant.recover is not None else ""
        done.append(f"each layer cut to the {variant.experts} experts that the task uses most{after}")
    if variant.int8:
        done.append(
            "its matrices as int8 with one scale per output channel (read by transformers with compressed-tensors)"
        )
    return f"`{of.name}` made smaller: {'; '.join(done)}."
