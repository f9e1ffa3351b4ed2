"""Options of the data: sources, bounds, duplicates, gates."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.params.section import Count, Digest, Language, Name, Positive, Section, Share


class GeneratedSource(Section):
    """Arithmetic and string problems with worked traces, and preference pairs, made here from a seed."""

    kind: Literal["generated"]
    name: Name
    problems: Count
    families: Annotated[dict[str, Positive], Field(min_length=1)]  # family → weight in the mix
    pairs: Count = 1500  # preference pairs on everyday requests


class FieldMap(Section):
    """Which column of a row holds what, and what to take out of it by regular expressions."""

    prompt: str = "prompt"
    gold: str = "gold"
    answer_pattern: str | None = None  # its one group is the gold; what stands before the match is the thinking
    thinking: str | None = None
    thinking_strip: str | None = None  # what it matches is taken out of the thinking
    difficulty: str | None = None
    difficulty_count: str | None = None  # difficulty = how often it occurs in the `gold` column
    verifier: str | None = None
    task: str | None = None
    language: str | None = None

    @model_validator(mode="after")
    def _patterns_compile(self) -> "FieldMap":
        for key, groups in (("answer_pattern", 1), ("thinking_strip", None), ("difficulty_count", None)):
            if (pattern := getattr(self, key)) is None:
                continue
            try:
                found = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{key}: {pattern!r} is no regular expression: {error}") from None
            if groups is not None and found != groups:
                raise ValueError(f"{key}: {pattern!r} must have exactly one group, has {found}")
        return self

    @model_validator(mode="after")
    def _one_origin_each(self) -> "FieldMap":
        if self.difficulty and self.difficulty_count:
            raise ValueError("difficulty and difficulty_count: give one of them")
        if self.thinking and self.answer_pattern:
            raise ValueError("thinking and answer_pattern: the pattern gives a thinking already; give one of them")
        return self


class RowSource(Section):
    """Options of every source whose rows come from somewhere else."""

    name: Name
    task: Name  # where `fields.task` is not given
    language: Language | None = None  # of all rows, where `fields.language` is not given; None: detected
    verifier: Literal["exact", "numeric", "math", "code"] = "math"
    split: Literal["train", "evaluation"] | None = None  # None: by content hash, as `held_out` says
    fields: FieldMap = FieldMap()


class FileSource(RowSource):
    """jsonl or parquet files by path, glob or `s3://…`."""

    kind: Literal["jsonl", "parquet"]
    path: str
    digest: Digest | None = None  # of the content, as `r1flow digest` prints it; curation does not run without


class HubSource(RowSource):
    """A data set of the Hugging Face hub, by id and revision, or a local folder in that format."""

    kind: Literal["hub"]
    dataset: str
    revision: str | None = None  # the commit, where it is an id
    digest: Digest | None = None  # of the content, where it is a folder
    subset: str | None = None
    rows: str = "train"  # the data set's own split to read


class GymSource(Section):
    """A data set of the `reasoning-gym` package (an optional extra)."""

    kind: Literal["reasoning_gym"]
    name: Name
    dataset: str
    problems: Count
    verifier: Literal["exact", "numeric", "math"] = "exact"
    options: dict[str, Any] = {}


Source = Annotated[GeneratedSource | FileSource | HubSource | GymSource, Field(discriminator="kind")]


class Limits(Section):
    """Bounds on what one row may be."""

    line_bytes: Count = 1_000_000
    prompt_chars: Count = 4_000
    gold_chars: Count = 1_000
    thinking_chars: Count = 32_000


class NearDuplicates(Section):
    """MinHash over word shingles. Prompts that differ in their numbers are never near duplicates."""

    similarity: Annotated[float, Field(gt=0, le=1)] = 0.85
    shingle_words: Count = 3
    permutations: Annotated[int, Field(ge=16, multiple_of=4)] = 64  # more: a better estimate of the similarity


class Decontamination(Section):
    """n-gram overlap with the evaluation split, in words; numbers count as words, and all of the prompt's must be."""

    ngram_words: Count = 8
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5  # of an evaluation prompt's n-grams found in the row
    phrase_rows: Count = 10  # an n-gram that more rows have (of up to 50,000 looked at) is a phrase and does not count


class DifficultyBand(Section):
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "DifficultyBand":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Gates(Section):
    """What the quality gates demand of the accepted data."""

    min_problems: Count = 100
    max_quarantined: Share = 0.2
    min_task_share: Share = 0.01
    max_task_share: Share = 1.0
    max_length_drift: Positive = 0.25  # relative change of the mean prompt length against the last accepted set
    max_task_drift: Share = 0.2  # total variation distance between the task mixes

    @model_validator(mode="after")
    def _ordered(self) -> "Gates":
        if self.min_task_share > self.max_task_share:
            raise ValueError(f"min_task_share {self.min_task_share} is above max_task_share {self.max_task_share}")
        return self


class Curation(Section):
    sources: Annotated[list[Source], Field(min_length=1)]
    languages: Annotated[list[Language], Field(min_length=1)] = ["en"]
    limits: Limits = Limits()
    near_duplicates: NearDuplicates = NearDuplicates()
    decontamination: Decontamination = Decontamination()
    difficulty: DifficultyBand = DifficultyBand()
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _names_differ(self) -> "Curation":
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"sources: names must differ, got {names}")
        return self
