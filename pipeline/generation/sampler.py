"""From logits to the next token of each sequence."""

import hashlib

import torch
from torch import Tensor

from pipeline.params import Sampling


def randomness(seed: int, prompt: str, number: int, length: int) -> Tensor:
    """Uniform numbers (length,) in [0, 1) for sample `number` of a prompt.

    Every sequence has numbers of its own, so its text does not depend on what else is in the batch.
    """
    digest = hashlib.sha256(f"{seed}\0{number}\0{prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.rand(length, generator=generator, dtype=torch.float64)


def choose(logits: Tensor, uniform: Tensor, options: Sampling) -> Tensor:
    """Next tokens (B,) from logits (B, V), by inverting the cumulative distribution at `uniform` (B,).

    Temperature 0 takes the likeliest token. `top_p` keeps the smallest set of likeliest tokens whose mass reaches it
    (nucleus sampling, Holtzman et al. 2020).
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    probabilities, tokens = (logits.double() / options.temperature).softmax(-1).sort(stable=True, descending=True)
    nucleus = probabilities.cumsum(-1) - probabilities < options.top_p  # the first token always belongs to it
    cumulative = (probabilities * nucleus).cumsum(-1)
    place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    place = place.minimum(nucleus.sum(-1, keepdim=True) - 1)  # where rounding makes the target equal the whole mass
    return tokens.gather(-1, place).squeeze(-1)
