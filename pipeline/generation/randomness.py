"""Random numbers that belong to a sequence and to nothing else, so that its text does not depend on its company.

Different from the textbook: no generator is kept. The number of a sequence's token i is a function of the sequence's
key and of i, worked out for a whole batch at once, whichever sequences are in it and however far each has come.
"""

import hashlib

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def sequence_key(seed: int, identity: str, number: int) -> int:
    """The key, 64 bits, of sample `number` of what `identity` names."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{number}\0{identity}".encode()).digest()[:8])


def uniforms(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Uniform numbers (B,) float64 in [0, 1) for keys (B,) uint64, each at its own counter (B,) uint64.

    Number i of the SplitMix64 generator with the key as its state (Steele, Lea and Flood, OOPSLA 2014, section 4).
    """
    mixed = keys + (counters + np.uint64(1)) * _STEP
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)) * 2.0**-53
