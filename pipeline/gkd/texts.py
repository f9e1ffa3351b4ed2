"""Which texts a step compares student and teacher on: the set's own, or completions that the student has just written.

All epochs' examples laid end to end, each in a seeded order, are one endless line; step s has places s·B to (s + 1)·B,
B being the prompts of a step. So a step is a function of (examples, seed, s) and of the student's weights.
Different from the paper, which draws for every step whether all of it is the student's: here every λ-th place of the
line is, so each step has its share and nothing is drawn.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerFast

from pipeline.errors import InputError
from pipeline.generation.engine import Engine
from pipeline.generation.requests import Completion, Request
from pipeline.generation.shares import SharedEngine
from pipeline.model.decoder import Decoder
from pipeline.params import OnPolicy, Sampling
from pipeline.training.batches import Example
from pipeline.world import world

Generate = Callable[[Sequence[Request]], Iterable[Completion]]
"""The engine as a step sees it: completions in any order; `Completion.request` counts within this call."""


def prompt_length(example: Example) -> int:
    """Tokens before the first that counts."""
    return int(example.counts.argmax())


def is_students(place: int, share: float) -> bool:
    """Whether the student writes at this place: of the first n places, ⌊share · n⌋ are its own."""
    return math.floor((place + 1) * share) > math.floor(place * share)


class Texts:
    """The endless line of examples, of whose completions the student writes its share anew."""

    def __init__(self, examples: Sequence[Example], options: OnPolicy, seed: int, generate: Generate) -> None:
        self._examples, self._options, self._seed, self._generate = examples, options, seed, generate
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def __getitem__(self, step: int) -> tuple[list[Example], list[Completion]]:
        """The texts of a step in the order of the line, and the completions that the student wrote for it."""
        options = self._options
        places = range(step * options.prompts, (step + 1) * options.prompts)
        examples = [self._at(place) for place in places]
        own = [index for index, place in enumerate(places) if is_students(place, options.share)]
        sampling = Sampling(temperature=options.temperature, top_p=1.0, max_new_tokens=options.max_new_tokens)
        requests = [
            # An example that comes again has another place, and so other random numbers.
            Request(_prompt(examples[index]), 1, sampling, f"{places[index]}:{_prompt(examples[index])}")
            for index in own
        ]
        written = {completion.request: completion for completion in self._generate(requests)} if requests else {}
        for number, index in enumerate(own):
            examples[index] = _rewritten(examples[index], written[number])
        return examples, [written[number] for number in range(len(own))]

    def _at(self, place: int) -> Example:
        epoch, index = divmod(place, len(self._examples))
        return self._examples[self._order(epoch)[index]]

    def _shuffle(self, epoch: int) -> list[int]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._examples)).tolist()


def _prompt(example: Example) -> tuple[int, ...]:
    return tuple(example.tokens[: prompt_length(example)].tolist())


def _rewritten(example: Example, completion: Completion) -> Example:
    length = prompt_length(example)
    tokens = np.concatenate([example.tokens[:length], completion.tokens])
    return Example(tokens, np.arange(len(tokens)) >= length)


def student_engine(
    student: Decoder, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], options: OnPolicy, seed: int
) -> Generate:
    """An engine over the student's own weights, with room for these examples' prompts. It is kept from step to step.

    Raises InputError where the longest prompt and `max_new_tokens` do not fit into the student together.
    """
    longest, room = max(map(prompt_length, examples)), student.config.max_position_embeddings
    if longest + options.max_new_tokens > room:
        raise InputError(
            f"on_policy.max_new_tokens = {options.max_new_tokens}: must, with the longest prompt's {longest} tokens, "
            f"be at most the student's max_position_embeddings = {room}"
        )
    slots, length = min(options.slots, -(-options.prompts // world().size)), longest + options.max_new_tokens
    return SharedEngine(Engine(student, tokenizer, seed=seed, slots=slots, max_length=length))
