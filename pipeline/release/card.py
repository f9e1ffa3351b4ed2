"""The model card: README.md with what a stranger has to know before using a release.

A function of the release's own facts, as everything else in its folder: no time, no host, no commit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import polars as pl

from pipeline.figures import percent
from pipeline.model.config import ModelConfig
from pipeline.params import Sampling
from pipeline.release.record import Figures, Release

TASK_FIGURE = ".pass_at_1"
SHARES = ("pass_at_", "cons_at_", "well_formed", "truncated", "language")
LABELS = {"well_formed": "well-formed", "truncated": "cut at the token limit", "language": "in the right language"}


@dataclass(frozen=True, slots=True)
class Background:
    """What the releases of a run have in common."""

    problems: pl.DataFrame  # of `Problem`s
    samples: pl.DataFrame  # of `Sample`s
    upstream: Mapping[str, Mapping[str, str]]  # as in `Record`
    verifiers: Mapping[str, int]


def card(release: Release, config: ModelConfig, sampling: Sampling, background: Background, about: str) -> str:
    """The card's text. `release` needs no digest and no files yet."""
    checked = background.samples.filter((pl.col("model") == release.model) & (pl.col("verdict") != "unchecked"))
    problems = background.problems
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
        Path(__file__).with_name("card.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        percent=percent,
        name=release.name,
        kind=release.kind,
        about=about,
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        positions=config.max_position_embeddings,
        parameters=release.parameters,
        activated=release.activated_parameters,
        sampler=_sampler(sampling),
        max_new_tokens=sampling.max_new_tokens,
        example=checked["prompt"][0],
        problems=checked["problem_id"].n_unique(),
        samples=checked["number"].n_unique(),
        verifiers=", ".join(f"`{name}` version {version}" for name, version in background.verifiers.items()),
        figures=_rows(release.evaluation),
        truncated=percent(release.evaluation["truncated"]["mean"]),
        parity=release.parity,
        lineage=_lineage(release, background.upstream),
        data=_data(problems),
        tasks=", ".join(problems["task"].unique().sort()),
        languages=[language for language in problems["language"].unique().sort() if language] or ["none named"],
    )


def _sampler(sampling: Sampling) -> str:
    if not sampling.temperature:
        return "greedy: the likeliest token"
    cuts = f", top-k {sampling.top_k}" if sampling.top_k else ""
    cuts += f", min-p {sampling.min_p:g}" if sampling.min_p else ""
    return f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}{cuts}"


def _rows(evaluation: Mapping[str, Figures]) -> list[dict[str, str]]:
    """Shares in percent, everything else as it is."""
    rows = []
    for name, figure in evaluation.items():
        is_share = name.startswith(SHARES) or name.endswith(TASK_FIGURE)
        shown = {bound: percent(value) if is_share else f"{value:.3g}" for bound, value in figure.items()}
        rows.append({"name": _label(name), **shown})
    return rows


def _label(name: str) -> str:
    """`pass_at_1` as pass@1, `sum.pass_at_1` as "pass@1 of task `sum`"."""
    if name.endswith(TASK_FIGURE):
        return f"pass@1 of task `{name.removesuffix(TASK_FIGURE)}`"
    return LABELS.get(name, name.replace("_at_", "@").replace("_", " "))


def _lineage(release: Release, upstream: Mapping[str, Mapping[str, str]]) -> Sequence[dict[str, str]]:
    """Outputs of the stages before it; of the models only those that it comes from."""
    rows = [
        {"stage": stage, "path": path, "digest": digest}
        for stage, outputs in upstream.items()
        for path, digest in outputs.items()
        if stage != "distillation"
    ]
    known = {row["path"] for row in rows}
    own = [(path, digest) for path, digest in release.trained.items() if path not in known]
    return rows + [{"stage": "distillation", "path": path, "digest": digest} for path, digest in own]


def _data(problems: pl.DataFrame) -> str:
    sources = ", ".join(f"`{source}`" for source in problems["source"].unique().sort())
    splits = dict(problems.group_by("split").len().iter_rows())
    return (
        f"{splits.get('train', 0):,} problems to learn from and {splits.get('evaluation', 0):,} held out, "
        f"of the sources {sources}"
    )
