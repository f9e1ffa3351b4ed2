"""Options of evaluation: what is asked, and which model may pass."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params.generation import Sampling
from pipeline.params.section import Count, Digest, Language, Section, Share


class Floor(Section):
    """How far a stage's pass@1 may lie below that of the model it is compared with, on the same problems."""

    fall: Annotated[float, Field(ge=-1, le=1)]  # 0.02: two points of a hundred; below 0: it must rise
    bound: Literal["mean", "low"] = "mean"  # what must not lie below: the mean difference, or its interval's lower end


class StudentFloor(Section):
    """What every student must keep of the teacher's pass@1."""

    keep: Share
    bound: Literal["mean", "low"] = "mean"


Judged = Literal["general_rl", "general_sft", "reasoning_rl", "cold_start"]
"""Stages whose model has another one of the run to be compared with; pipeline/evaluation/models.py says which."""


class ModelGates(Section):
    """Which of the run's models may pass. A model without a floor passes.

    R1's stages do not rise evenly. On AIME 2024 (DeepSeek-R1, Nature supplement): R1-Zero 77.9, after the cold start
    59.0, then 74.0 (reasoning_rl), 78.1 (general_sft), 79.8 (general_rl). So the cold start may fall by those nineteen
    points and a little, and no other stage by more than chance makes of some hundred problems.
    """

    stages: dict[Judged, Floor] = {
        "cold_start": Floor(fall=0.2),
        "reasoning_rl": Floor(fall=0.0),
        "general_sft": Floor(fall=0.05),
        "general_rl": Floor(fall=0.03),
    }
    students: StudentFloor | None = StudentFloor(keep=0.8)


class Champion(Section):
    """The model in use, which the run's final model must not be worse than: a non-inferiority test, paired by problem.

    The lower end of the difference's 95 % interval must not lie below −`margin` (ICH E9, section 3.3.2).
    """

    samples: str  # the champion's judged samples.parquet: a path in the project or s3://bucket/key
    digest: Digest  # of that file, as `sha256sum` prints it
    model: Annotated[str, Field(min_length=1)] = "general_rl"  # whose rows in it
    margin: Share = 0.02
    least: Count = 100  # problems that both have answered; fewer prove nothing


class Evaluation(Section):
    problems: Count
    samples: Count  # per problem; pass@1 is their mean
    general: Annotated[int, Field(ge=0)] = 48  # prompts without a right answer, for the preference model
    language: Language = "en"  # of the thinking, where a problem names none
    sampling: Sampling = Sampling()
    gates: ModelGates = ModelGates()
    champion: Champion | None = None
