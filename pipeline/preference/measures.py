"""How good a reward model is on pairs that it was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.model.reward import RewardModel
from pipeline.preference.pairs import Pair


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Raw scores of P pairs, and how long the answers are."""

    chosen: np.ndarray  # (P,) float64
    rejected: np.ndarray  # (P,)
    lengths: np.ndarray  # (P, 2) tokens of the chosen and the rejected text, prompt included

    @property
    def right(self) -> np.ndarray:
        """(P,): 1 where the chosen answer has the higher score, ½ where both have the same."""
        return right(self.chosen - self.rejected)

    @property
    def shorter(self) -> np.ndarray:
        """(P,) bool: the chosen answer is the shorter one, so that length does not help."""
        return self.lengths[:, 0] < self.lengths[:, 1]

    def length_correlation(self) -> float:
        """Spearman's rank correlation, over pairs, of the difference in score and the difference in length.

        Differences, because the prompt is part of the length and says nothing about the answer. 1 is a model that goes
        by length, 0 one whose score does not change with it; 0 too where all pairs differ alike.
        """
        score, length = self.chosen - self.rejected, self.lengths[:, 0] - self.lengths[:, 1]
        if len(set(score)) == 1 or len(set(length)) == 1:
            return 0.0
        return float(stats.spearmanr(score, length).statistic)


def measure(model: RewardModel, pairs: Sequence[Pair]) -> Measured:
    """Each answer is scored alone: which of a pair comes first has no meaning to the model."""
    scores = model.raw_scores([text for pair in pairs for text in (pair.chosen, pair.rejected)]).double().numpy()
    lengths = np.array([(len(pair.chosen), len(pair.rejected)) for pair in pairs])
    return Measured(scores[::2], scores[1::2], lengths)


def right(difference: np.ndarray) -> np.ndarray:
    """1 above 0, ½ at 0, 0 below."""
    return (1 + np.sign(difference)) / 2


def agreement(first: Measured, second: Measured) -> float:
    """Share of pairs that two models rank alike."""
    return float((np.sign(first.chosen - first.rejected) == np.sign(second.chosen - second.rejected)).mean())
