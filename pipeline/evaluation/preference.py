"""How well liked are the answers to general prompts, by the preference model's word?

Its score has no unit and no zero: only comparing two models' means on the same prompts says something. The share of
won comparisons is easier to read, and one extreme score cannot carry it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl
from transformers import PreTrainedTokenizerFast

from pipeline.evaluation.intervals import Interval, mean_interval
from pipeline.model.device import stage_device
from pipeline.model.reward import load_reward
from pipeline.model.tokenizer import load_tokenizer

FOLDER = "artifacts/preference/model"


class Scorer(Protocol):
    def scores(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[str, str]], /) -> Sequence[float]:
        """A score for each prompt with the completion's text."""
        ...


@dataclass(frozen=True, slots=True)
class Preference:
    """The preference model and its tokenizer."""

    scorer: Scorer
    tokenizer: PreTrainedTokenizerFast

    def score(self, samples: pl.DataFrame) -> pl.DataFrame:
        """A table of `Sample`s with the scores of its general prompts' answers filled in."""
        general = pl.col("verdict") == "unchecked"
        asked = samples.filter(general)
        texts = list(zip(asked["prompt"], asked["completion"], strict=True))
        scored = asked.with_columns(preference=pl.Series(self.scorer.scores(self.tokenizer, texts), dtype=pl.Float64))
        return pl.concat([samples.filter(~general), scored])


def find_preference(root: Path, dependencies: Iterable[str]) -> Preference | None:
    """The preference model, where a stage's dependencies name it."""
    if FOLDER not in dependencies:
        return None
    return Preference(load_reward(root / FOLDER, stage_device()), load_tokenizer(root / FOLDER))


def mean_preference(samples: pl.DataFrame, model: str, seed: int) -> Interval | None:
    """Mean score of a model's answers to general prompts, each prompt with the same weight; None where it has none."""
    scores = samples.filter(pl.col("model") == model).drop_nulls("preference")
    if scores.is_empty():
        return None
    by_prompt = scores.group_by("problem_id").agg(pl.col("preference").mean()).sort("problem_id")
    return mean_interval(by_prompt["preference"].to_list(), seed)


def win_rate(samples: pl.DataFrame, model: str, reference: str, seed: int) -> Interval | None:
    """Share of comparisons on a prompt that `model` wins; a tie is half a win; None where there is nothing to compare.

    Every answer of the one is compared with every answer of the other to the same prompt.
    """
    scores = samples.drop_nulls("preference").select("model", "problem_id", "preference")
    ours, theirs = (scores.filter(pl.col("model") == name) for name in (model, reference))
    pairs = ours.join(theirs, on="problem_id", suffix="_reference")
    if pairs.is_empty():
        return None
    gap = pl.col("preference") - pl.col("preference_reference")
    won = pairs.with_columns(won=(gap > 0).cast(pl.Float64) + 0.5 * (gap == 0).cast(pl.Float64))
    by_prompt = won.group_by("problem_id").agg(pl.col("won").mean()).sort("problem_id")
    return mean_interval(by_prompt["won"].to_list(), seed)
