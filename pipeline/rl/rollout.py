"""rollout: from questions to groups of completions.

Questions come in an endless line, epoch after epoch, each in a seeded order of its own. A place in the line is a
question, so where a run stands in its data is one number, and data once seen are not drawn again after a roll-back.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerFast

from pipeline import chat
from pipeline.errors import InputError
from pipeline.generation.engine import Engine
from pipeline.generation.requests import Completion, Request
from pipeline.generation.shares import SharedEngine
from pipeline.model.decoder import Decoder
from pipeline.params import GRPO, Sampling
from pipeline.records import Problem
from pipeline.world import world

Generate = Callable[[Sequence[Request]], Iterable[Completion]]
"""The rollout engine as the step sees it: completions in any order; `Completion.request` counts within this call."""


@dataclass(frozen=True, slots=True)
class Question:
    """A problem and the tokens (p,) that put it to the model."""

    problem: Problem
    prompt: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A question and its completions, by number."""

    question: Question
    completions: tuple[Completion, ...]


class Line(Protocol):
    """Where questions come from."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        ...

    def take(self, place: int, count: int, step: int) -> list[Question]:
        """The `count` questions from `place` on, as they are asked in `step`."""
        ...


class Questions:
    """The endless line of questions: a function of (questions, seed) alone."""

    def __init__(self, questions: Sequence[Question], seed: int) -> None:
        if not questions:
            raise InputError("no problem to train on: the train split has none that a verifier can check")
        self._questions = questions
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._shuffle)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(question.prompt) for question in self._questions)

    def take(self, place: int, count: int, step: int = 0) -> list[Question]:
        """The `count` questions from `place` on, the same in any step."""
        return [self[place + offset] for offset in range(count)]

    def __getitem__(self, place: int) -> Question:
        epoch, index = divmod(place, len(self._questions))
        return self._questions[self._order(epoch)[index]]

    def _shuffle(self, epoch: int) -> list[int]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._questions)).tolist()


def checkable_questions(tokenizer: PreTrainedTokenizerFast, problems: pl.DataFrame) -> list[Question]:
    """The train split's problems that a verifier can check, from a table of `Problem`s, in its order."""
    return _questions(tokenizer, problems.filter((pl.col("split") == "train") & (pl.col("verifier") != "none")))


def general_questions(tokenizer: PreTrainedTokenizerFast, problems: pl.DataFrame) -> list[Question]:
    """The train split's problems that have no right answer, from a table of `Problem`s, in its order."""
    return _questions(tokenizer, problems.filter((pl.col("split") == "train") & (pl.col("verifier") == "none")))


def _questions(tokenizer: PreTrainedTokenizerFast, chosen: pl.DataFrame) -> list[Question]:
    bos = tokenizer.bos_token or ""
    texts = [chat.render_prompt(prompt, bos=bos) for prompt in chosen["prompt"]]
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    rows = zip(chosen.iter_rows(named=True), encodings, strict=True)
    return [Question(Problem(**row), tuple(encoding.ids)) for row, encoding in rows]


def rollout(generate: Generate, questions: Sequence[Question], place: int, options: GRPO) -> list[Group]:
    """A group of `options.group` completions for each question; the first one stands at `place` in the line.

    Drawn from the model's whole distribution at the temperature: what top-p cut off would make the log-probabilities
    those of another policy. A question that comes again has another place, and so other random numbers.
    """
    sampling = Sampling(temperature=options.temperature, top_p=1.0, max_new_tokens=options.max_new_tokens)
    requests = [
        Request(question.prompt, options.group, sampling, f"{place + offset}:{question.problem.id}")
        for offset, question in enumerate(questions)
    ]
    completions = {(completion.request, completion.number): completion for completion in generate(requests)}
    assert len(completions) == len(questions) * options.group, "the engine finishes every sample of every request"
    return [
        Group(question, tuple(completions[index, number] for number in range(options.group)))
        for index, question in enumerate(questions)
    ]


def rollout_engine(
    policy: Decoder, tokenizer: PreTrainedTokenizerFast, questions: Line, options: GRPO, seed: int
) -> Generate:
    """An engine over the policy's own weights, with room for these questions. It is kept from step to step.

    Of several ranks each has an engine, for its share of the questions.

    Raises InputError where the longest prompt and `max_new_tokens` do not fit into the model together.
    """
    room = policy.config.max_position_embeddings
    if questions.longest + options.max_new_tokens > room:
        raise InputError(
            f"max_new_tokens = {options.max_new_tokens}: must, with the longest prompt's {questions.longest} tokens, "
            f"be at most the model's max_position_embeddings = {room}"
        )
    share = -(-options.prompts // world().size)
    engine = Engine(
        policy,
        tokenizer,
        seed=seed,
        slots=min(options.slots, share * options.group),
        max_length=questions.longest + options.max_new_tokens,
        record_experts=options.replay_experts,
        bfloat16=options.dtype == "bfloat16",
    )
    return SharedEngine(engine)
