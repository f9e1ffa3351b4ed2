"""All models of a run on the same problems."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pipeline import chat
from pipeline.evaluation.models import Entry
from pipeline.evaluation.preference import Preference
from pipeline.evaluation.sampling import Speed, judge
from pipeline.generation.work import generation_work
from pipeline.job import UNMETERED, Meter
from pipeline.model.checkpoint import load_model
from pipeline.model.decoder import ModelSize
from pipeline.model.device import stage_device
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
    models: Sequence[Entry],
    problems: pl.DataFrame,
    options: Evaluation,
    seed: int,
    preference: Preference | None,
    meter: Meter = UNMETERED,
) -> Evaluated:
    """Ask every model the same problems; one model is in memory at a time.

    Without a preference model the answers to general prompts are kept, but have no score.
    """
    tables, sizes, speeds = [], {}, {}
    for entry in models:
        model, tokenizer = load_model(entry.folder, device=stage_device()), load_tokenizer(entry.folder)
        sizes[entry.name] = model.size()
        samples, speeds[entry.name] = judge(entry.name, model, tokenizer, problems, options, seed)
        lengths = dict(samples.group_by("problem_id").agg("tokens").iter_rows())
        prompts = [chat.render_prompt(prompt, bos=tokenizer.bos_token or "") for prompt in problems["prompt"]]
        meter.count(generation_work(model, tokenizer, prompts, [lengths[problem] for problem in problems["id"]]))
        tables.append(samples if preference is None else preference.score(samples))
    return Evaluated(models, pl.concat(tables), sizes, speeds)
