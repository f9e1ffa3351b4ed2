"""pass@k and cons@k of a problem from its n samples.

pass@k: would one of k samples be right? The unbiased estimator 1 − C(n−c, k) / C(n, k) for c right ones of n, the share
of all subsets of k that hold a right one (Chen et al. 2021, arXiv 2107.03374, section 2.1).

cons@k: is the answer that most of k samples give the right one (DeepSeek-R1, section 3; Wang et al. 2022)? Here k is n,
all samples. Where several answers have the most votes one of them would be drawn by lot: the figure is the chance that
it is a right one. What has no answer (unparseable) has no vote; without any vote the problem counts as wrong.

Which answers are equal: those that the verifier finds right are equal to each other, as it finds each equal to the gold
answer. Wrong ones are equal if they are the same number, or, where they are none, the same normalised text. For
`exact` and `numeric` that is the verifier's own notion (but for its tolerance of a millionth). For `math` and `code`
two wrong answers that only mean the same count as two, so cons@k is an upper bound there.
"""

from math import comb

import polars as pl

from pipeline.records import normalise
from pipeline.rewards.answer import number

NO_ANSWER = ("unparseable", "unchecked")
"""Verdicts of samples that do not vote."""


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that one of k samples, drawn without replacement from `samples` of which `right` are right, is right."""
    assert 1 <= k <= samples
    assert 0 <= right <= samples
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def sensible_ks(samples: int) -> list[int]:
    """The powers of two up to `samples`, and `samples`."""
    return sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})


def vote(answer: str, verdict: str, verifier: str) -> str | None:
    """What a sample votes for: samples with equal answers have equal votes. None: it does not vote.

    `verifier` as in `Sample`, with its version.
    """
    if verdict in NO_ANSWER:
        return None
    if verdict == "right":
        return "right"
    readings = number(answer) if verifier.split()[0] in ("numeric", "math") else ()
    return f"number {readings[0]}" if readings else f"text {normalise(answer)}"


def consensus(samples: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """cons@n of each group of samples `by` some columns: a row a group, with `consensus` from 0 to 1.

    `samples` has the columns `answer`, `verdict` and `verifier` of `Sample`.
    """
    columns = zip(samples["answer"], samples["verdict"], samples["verifier"], strict=True)
    votes = samples.with_columns(vote=pl.Series([vote(*row) for row in columns], dtype=pl.String))
    counted = votes.drop_nulls("vote").group_by([*by, "vote"]).len()
    elected = counted.filter(pl.col("len") == pl.col("len").max().over(by))
    shares = elected.group_by(by).agg(consensus=(pl.col("vote") == "right").mean())
    return samples.select(by).unique().join(shares, on=by, how="left").with_columns(pl.col("consensus").fill_null(0.0))
