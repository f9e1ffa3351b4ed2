"""Rejection sampling: which completions of a model become training data.

A completion is accepted when its answer is right and its thinking is fit to learn from (DeepSeek-R1, section 2.3.3: no
mixed languages, no long paragraphs, no code blocks). Of a problem's accepted ones the best by reward are kept, then the
shortest, then those that differ most from what is kept already.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import polars as pl

from pipeline.errors import InputError
from pipeline.params import RejectionSampling, Rewards, Selection
from pipeline.records import Problem, Trace, difficulty_name, schema
from pipeline.rewards.format import check_form
from pipeline.rewards.language import language_share
from pipeline.rewards.repetition import repetition
from pipeline.rewards.score import Attempt, Scored

Drop = Literal[
    "",
    "cut",
    "malformed",
    "wrong",
    "unparseable",
    "timed out",
    "no thinking",
    "mixed languages",
    "repetitive",
    "long paragraph",
    "code block",
    "same again",
    "surplus",
]
"""Why a completion does not become a trace, in the order in which the rules are tried; "" for one that does. `surplus`:
it is good, but enough of its problem are kept already."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A judged completion of a problem."""

    problem_id: str
    thinking: str
    answer: str
    reward: float
    tokens: int
    drop: Drop


def candidate(problem: Problem, attempt: Attempt, scored: Scored, options: RejectionSampling) -> Candidate:
    """Put a scored completion to the rules that look at it alone."""
    form = check_form(attempt.text).completion
    drop: Drop = ""
    if attempt.cut:
        drop = "cut"
    elif not form.well_formed:
        drop = "malformed"
    elif scored.verdict is not None and scored.verdict != "right":
        drop = scored.verdict
    else:
        drop = _unfit(form.thinking, attempt.prompt, options.selection, options.rewards)
    return Candidate(problem.id, form.thinking, form.answer, scored.reward, attempt.tokens, drop)


def _unfit(thinking: str, prompt: str, options: Selection, rewards: Rewards) -> Drop:
    if not thinking.strip():
        return "no thinking"
    if language_share(thinking, rewards.language, prompt).score < options.min_language:
        return "mixed languages"
    if -repetition(thinking, rewards.repetition_ngram) > options.max_repetition:
        return "repetitive"
    if max(map(len, thinking.split("\n\n"))) > options.paragraph_chars:
        return "long paragraph"
    if "```" in thinking and not options.code_blocks:
        return "code block"
    return ""


def select(candidates: Sequence[Candidate], keep: int) -> list[Candidate]:
    """The same candidates in the same order, with a `drop` for those that are fit but not kept."""
    by_problem: dict[str, list[int]] = {}
    for index, one in enumerate(candidates):
        if not one.drop:
            by_problem.setdefault(one.problem_id, []).append(index)
    drops: dict[int, Drop] = {}
    for indices in by_problem.values():
        drops |= _choose(candidates, indices, keep)
    return [replace(one, drop=drops.get(index, one.drop)) for index, one in enumerate(candidates)]


def _choose(candidates: Sequence[Candidate], indices: Sequence[int], keep: int) -> dict[int, Drop]:
    """Which of one problem's fit candidates are not kept, and why."""
    drops: dict[int, Drop] = {}
    left: list[int] = []
    seen: set[tuple[str, str]] = set()
    for index in indices:
        text = (candidates[index].thinking, candidates[index].answer)
        if text in seen:
            drops[index] = "same again"
        else:
            seen.add(text)
            left.append(index)
    kept: list[int] = []
    while left and len(kept) < keep:
        taken = [_bigrams(candidates[index].thinking) for index in kept]
        best = min(left, key=lambda index: _rank(candidates[index], taken))
        left.remove(best)
        kept.append(best)
    surplus: Drop = "surplus"
    return drops | dict.fromkeys(left, surplus)


def _rank(one: Candidate, taken: Sequence[frozenset[str]]) -> tuple[float, int, float]:
    bigrams = _bigrams(one.thinking)
    likeness = max((len(bigrams & other) / max(1, len(bigrams | other)) for other in taken), default=0.0)
    return (-one.reward, one.tokens, likeness)


def _bigrams(text: str) -> frozenset[str]:
    return frozenset(text[start : start + 2] for start in range(len(text) - 1))


def traces(candidates: Iterable[Candidate], origin: str) -> pl.DataFrame:
    """The kept candidates as a table of `Trace`s."""
    rows = [Trace(one.problem_id, one.thinking, one.answer, origin) for one in candidates if not one.drop]
    return pl.DataFrame(rows, schema=schema(Trace))


def general_traces(
    problems: pl.DataFrame, known: pl.DataFrame, reasoning: int, share: float, seed: int
) -> pl.DataFrame:
    """Curation's traces of problems that nothing checks, drawn by the seed, as many as make `share` of the whole set.

    Fewer where there are not so many. Raises InputError where there are none and `share` is above 0.
    """
    if share == 0:
        return known.clear()
    unchecked = problems.filter((pl.col("verifier") == "none") & (pl.col("split") == "train"))["id"]
    general = known.filter(pl.col("problem_id").is_in(unchecked.implode()))
    if general.is_empty():
        raise InputError(
            f"rejection_sampling.general: {share:g}: curation has no trace of a problem that nothing checks "
            "(verifier none); add such data, or set it to 0"
        )
    count = min(general.height, round(reasoning * share / (1 - share)))
    return general[sorted(random.Random(seed).sample(range(general.height), count))]


def yields(asked: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """Per task and difficulty: problems asked, and how many of them have a kept trace.

    Columns task, difficulty (null where the source has none), problems, answered, yield (0 to 1).
    """
    answered = pl.col("id").is_in(kept["problem_id"].implode())
    return (
        asked.group_by("task", "difficulty")
        .agg(problems=pl.len(), answered=answered.sum().cast(pl.Int64))
        .with_columns((pl.col("answered") / pl.col("problems")).alias("yield"))
        .sort("task", "difficulty")
    )


def drop_figures(judged: Iterable[Candidate]) -> dict[str, float]:
    """How many candidates were dropped for which reason: `dropped/<reason>`."""
    counts = Counter(one.drop for one in judged)
    return {f"dropped/{reason}": counts[reason] for reason in get_args(Drop) if reason}


def yield_figures(yielded: pl.DataFrame) -> dict[str, float]:
    """Yield per task, and per task and difficulty: `yield/<task>`, `yield/<task>/<difficulty>`."""
    by_task = yielded.group_by("task", maintain_order=True).agg(pl.col("answered").sum() / pl.col("problems").sum())
    figures: dict[str, float] = {f"yield/{task}": share for task, share in by_task.iter_rows()}
    for task, difficulty, share in yielded.select("task", "difficulty", "yield").iter_rows():
        if difficulty is not None:
            figures[f"yield/{task}/{difficulty_name(difficulty)}"] = share
    return figures
