"""deployment: the recipe's final model and its students as releases, each shown to be the model that was trained.

All releases appear together in one rename, and only after every one of them has passed its parity gate.
"""

import json
from dataclasses import replace

import polars as pl

from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.metrics import with_bounds
from pipeline.files import atomic_folder
from pipeline.job import Job, artifacts, read_stages
from pipeline.params import Params
from pipeline.records import Problem, Sample, read_table
from pipeline.release.bundle import Terms, build, figures_of, find_sources
from pipeline.release.card import Background
from pipeline.release.parity import questions
from pipeline.release.record import Record
from pipeline.release.sizing import right_size


def run(params: Params, job: Job) -> dict[str, float]:
    samples = read_table(job.input("evaluation", "samples.parquet"), Sample)
    problems = read_table(job.input("curation", "problems.parquet"), Problem)
    metrics = json.loads(job.input("evaluation", "metrics.json").read_text(encoding="utf-8"))
    upstream, verifiers = _upstream(job), _verifiers(samples)
    terms = Terms(
        root=job.root,
        sampling=params.evaluation.sampling,
        parity=params.deployment.parity,
        seed=params.seed,
        background=Background(problems, samples, upstream, verifiers),
        meter=job.meter,
    )
    sources = find_sources(job.root, read_stages(job.root)[job.stage]["deps"], params.distillation.students)
    releases = []
    with atomic_folder(artifacts(job.root, job.stage)) as folder:
        sized = right_size(sources, samples, params, job)
        sized.write(folder)
        known = {source.model: figures_of(metrics, source.model) for source in sources} | sized.evaluation
        terms = replace(terms, background=replace(terms.background, samples=sized.samples))
        for source in sized.sources:
            asked = questions(sized.samples, problems, source.model, terms.parity.problems)
            releases.append(build(source, folder / source.name, asked, known[source.model], terms))
        Record(tuple(releases), upstream, verifiers).write(folder)
    figures: dict[str, float] = {"releases": len(releases)}
    for release in releases:
        figures |= with_bounds(f"{release.name}.pass_at_1", Interval(**release.evaluation["pass_at_1"]))
        if release.of is not None:
            over = f"over_{release.of}"
            figures |= with_bounds(f"{release.name}.{over}", Interval(**release.evaluation[over]))
        figures[f"{release.name}.activated_parameters"] = release.activated_parameters
        figures[f"{release.name}.bytes"] = sum(
            (job.output(release.name) / name).stat().st_size for name in release.files
        )
    return figures


def _upstream(job: Job) -> dict[str, dict[str, str]]:
    """Stage → path of what it has written → SHA-256, of all that this stage depends on, in the recipe's order."""
    order = [name.partition("@")[0] for name in read_stages(job.root)]
    found: dict[str, dict[str, str]] = {stage: {} for stage in order}
    for path, digest in job.digests.items():
        match path.split("/"):
            case "artifacts", stage, *_:
                found[stage][path] = digest
    return {stage: outputs for stage, outputs in found.items() if outputs}


def _verifiers(samples: pl.DataFrame) -> dict[str, int]:
    """Whose verdicts the evaluation rests on, and in which version."""
    named = samples.filter(pl.col("verdict") != "unchecked")["verifier"].unique().sort()
    return {name: int(version) for name, version in (verifier.split() for verifier in named)}
