"""Scores of general prompts by a stand-in for the preference model."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.evaluation.preference import Preference, mean_preference, win_rate
from tests.unit.evaluation.tables import sample, table


class LikesLength:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def scores(self, tokenizer: Any, texts: Sequence[tuple[str, str]]) -> list[float]:
        assert tokenizer == "tokenizer"
        self.asked += texts
        return [float(len(completion)) for _, completion in texts]


GENERAL = {"task": "request", "verdict": "unchecked", "verifier": "none"}
SAMPLES = table(
    [
        sample("new", "a", 0, completion="long and kind", **GENERAL),
        sample("new", "a", 1, completion="kind", **GENERAL),
        sample("new", "b", 0, completion="no", **GENERAL),
        sample("new", "b", 1, completion="no", **GENERAL),
        sample("new", "c", 0, completion="checkable, so never asked"),
        sample("old", "a", 0, completion="curt", **GENERAL),
        sample("old", "a", 1, completion="curt", **GENERAL),
        sample("old", "b", 0, completion="well", **GENERAL),
        sample("old", "b", 1, completion="well", **GENERAL),
    ]
)


@pytest.fixture
def scored() -> Any:
    scorer = LikesLength()
    table = Preference(scorer, cast(PreTrainedTokenizerFast, "tokenizer")).score(SAMPLES)
    assert ("a?", "long and kind") in scorer.asked
    assert len(scorer.asked) == 8
    return table


def test_only_general_prompts_are_scored(scored: Any) -> None:
    assert scored.filter(verdict="right")["preference"].to_list() == [None]
    assert sorted(scored.drop("preference").rows()) == sorted(SAMPLES.drop("preference").rows())


def test_every_prompt_has_the_same_weight(scored: Any) -> None:
    assert mean_preference(scored, "new", seed=0).mean == ((13 + 4) / 2 + 2) / 2  # type: ignore[union-attr]
    assert mean_preference(SAMPLES, "new", seed=0) is None


def test_a_tie_is_half_a_win(scored: Any) -> None:
    """On `a` two wins and two ties of four, on `b` none."""
    ours, theirs = (win_rate(scored, *pair, seed=0) for pair in (("new", "old"), ("old", "new")))
    assert ours is not None
    assert theirs is not None
    assert ours.mean == (0.75 + 0) / 2
    assert ours.mean + theirs.mean == 1
    assert win_rate(SAMPLES, "new", "old", seed=0) is None
