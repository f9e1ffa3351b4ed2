"""All models of a run on the same problems."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.evaluation.models import Entry
from pipeline.evaluation.preference import Preference
from pipeline.evaluation.sampling import Speed, judge
from pipeline.model.checkpoint import load_model
from pipeline.model.decoder import ModelSize
from pipeline.model.tokenizer import load_tokenizer
from pipeline.params import Evaluation


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the models have answered, how large they are, and how fast they were."""

    models: Sequence[Entry]
    samples: pl.DataFrame  # of `Sample`s
    sizes: dict[str, ModelSize]
    speeds: dict[str, Speed]


def evaluate(
    models: Sequence[Entry], problems: pl.DataFrame, options: Evaluation, seed: int, preference: Preference | None
) -> Evaluated:
    """Ask every model the same problems; one model is in memory at a time.

    Without a preference model the answers to general prompts are kept, but have no score.
    """
    tables, sizes, speeds = [], {}, {}
    for entry in models:
        model, tokenizer = load_model(entry.folder), load_tokenizer(entry.folder)
        sizes[entry.name] = model.size()
        samples, speeds[entry.name] = judge(entry.name, model, tokenizer, problems, options, seed)
        tables.append(samples if preference is None else preference.score(samples))
    return Evaluated(models, pl.concat(tables), sizes, speeds)
