"""Two models on the same problems: how much better is one, and could that be chance?

Both answers are paired by problem: what makes a problem hard is hard for both, so it leaves the difference alone.
The interval is the bootstrap's over the problems' differences. The test is the sign-flip permutation test (Fisher 1935,
chapter 3): if the models were alike, each problem's difference would be as likely to have the other sign. McNemar's
test would ask for one right or wrong per problem; with several samples a problem has a share, which flipping signs
keeps. With one sample each, it is McNemar's exact test.

Different from the textbook: no permutations are drawn. Differences of shares over equally many samples are whole
numbers of samples, so the distribution of their sum under all 2ⁿ flips is computed, number by number.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.evaluation.intervals import Interval, difference_interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the first model does differently from the second on the problems of both."""

    model: str
    reference: str
    problems: int
    difference: Interval  # of pass@1, in shares: 0.02 is two points of a hundred
    p_value: float  # two-sided, sign-flip test, exact
    better: int  # problems with a larger share right than the reference's
    worse: int


def pair(problems: pl.DataFrame, model: str, reference: str) -> pl.DataFrame:
    """The problems of two models, a row for each that both have, the reference's columns with `_reference` behind.

    `problems` as `metrics.per_problem` gives them.
    """
    ours, theirs = (problems.filter(pl.col("model") == name) for name in (model, reference))
    return ours.join(theirs, on="problem_id", suffix="_reference").sort("problem_id")


def compare(problems: pl.DataFrame, model: str, reference: str, seed: int) -> Comparison:
    """Compare two models of a run, which have equally many samples of each problem."""
    both = pair(problems, model, reference)
    flips = (both["right"] - both["right_reference"]).to_numpy()
    return Comparison(
        model,
        reference,
        len(flips),
        difference_interval(flips / both["samples"].to_numpy(), seed),
        sign_flip_p(flips),
        int((flips > 0).sum()),
        int((flips < 0).sum()),
    )


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p-value of a sum of whole-numbered `differences`, over all ways to flip their signs.

    Time and memory grow with the sum of their magnitudes.
    """
    magnitudes = np.abs(differences[differences != 0])
    if not len(magnitudes):
        return 1.0
    magnitudes //= np.gcd.reduce(magnitudes)
    observed = abs(int((np.sign(differences[differences != 0]) * magnitudes).sum()))
    width = int(magnitudes.sum())
    chances = np.zeros(2 * width + 1)  # of each sum from −width to width
    chances[width] = 1.0
    for magnitude in magnitudes:
        halves = chances / 2
        chances = np.zeros_like(chances)
        chances[magnitude:] += halves[:-magnitude]
        chances[:-magnitude] += halves[magnitude:]
    sums = np.abs(np.arange(-width, width + 1))
    return min(1.0, float(chances[sums >= observed].sum()))
