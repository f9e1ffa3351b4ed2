"""Tables of judged samples for the tests of this folder."""

from collections.abc import Mapping, Sequence

import polars as pl

from pipeline.records import Sample, schema

VERDICTS = {"r": "right", "w": "wrong", "u": "unparseable", "t": "timed out"}


def sample(model: str, problem: str, number: int, **values: object) -> Sample:
    """A right answer, but for `values`."""
    fields: dict[str, object] = {
        "task": "sum",
        "completion": "",
        "tokens": 10 + number,
        "finished": True,
        "well_formed": True,
        "verdict": "right",
        "verifier": "numeric 1",
        "difficulty": 1.0,
        "prompt": f"{problem}?",
        "answer": "1",
        "language": 1.0,
        "preference": None,
    }
    return Sample(model=model, problem_id=problem, number=number, **{**fields, **values})  # type: ignore[arg-type]


def table(samples: Sequence[Sample]) -> pl.DataFrame:
    return pl.DataFrame(samples, schema=schema(Sample))


def judged(models: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """Model → its verdicts, a text per problem: `rrw` is two right ones and a wrong one. Problems are numbered."""
    return table(
        [
            sample(model, f"{place:04}", number, verdict=VERDICTS[letter])
            for model, problems in models.items()
            for place, letters in enumerate(problems)
            for number, letter in enumerate(letters)
        ]
    )
