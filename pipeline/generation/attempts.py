"""A completion of a problem as what the rule rewards judge."""

from pipeline.generation.requests import Completion
from pipeline.records import Problem
from pipeline.rewards.score import Attempt


def attempt(problem: Problem, completion: Completion, limit: int) -> Attempt:
    """`limit`: the most tokens that the completion could have had."""
    return Attempt(
        prompt=problem.prompt,
        gold=problem.gold,
        verifier=problem.verifier,
        text=completion.text,
        tokens=len(completion.tokens),
        cut=completion.finish == "length",
        limit=limit,
    )
