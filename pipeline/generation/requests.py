"""What goes into the rollout engine and what comes out of it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.params import Sampling

Finish = Literal["end", "stop", "length"]  # by the end token, by a stop string, by the token limit


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to complete `samples` times. The prompt goes through the model once for all of them."""

    prompt: tuple[int, ...]  # token ids, at least one
    samples: int
    sampling: Sampling
    identity: str  # with seed and sample number it fixes the random numbers, and so the text: a problem's id, say
    alternatives: int | None = None  # how many likeliest tokens each Piece tells beside its own; None: no likelihood


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One finished sample of n ≥ 1 tokens after a prompt of p."""

    request: int  # place of its request in the order of submission, from 0
    number: int  # which of the request's samples, from 0
    tokens: np.ndarray  # (n,) int64; the end token is one of them where the model ended by itself
    log_probabilities: np.ndarray  # (n,) float32: of each token under the model at the sampling temperature, before
    # top-p, top-k and min-p cut the distribution; at temperature 1 where that is 0
    text: str  # without the end token, and cut before a stop string
    finish: Finish
    experts: np.ndarray | None = None  # (p + n − 1, mixture layers, k) int16, if asked for: the choice of every token
    # that went through the model, prompt included; the last token never does


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-probabilities at one place, by the model alone: at temperature 1, before top-p, top-k and min-p."""

    token: float  # of the token that was drawn
    likeliest: tuple[tuple[int, float], ...]  # tokens and theirs, the likeliest first


@dataclass(frozen=True, slots=True)
class Piece:
    """What one more token of a streamed sample adds to its text."""

    request: int
    number: int
    token: int
    text: str  # '' while a character is unfinished or a stop string may be under way; all pieces make the whole text
    likelihood: Likelihood | None = None  # where the request asks for alternatives
