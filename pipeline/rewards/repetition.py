"""A penalty on text that repeats itself.

By the share of n-grams that occurred before: −(1 − different n-grams / n-grams), as Open-R1's repetition penalty, which
goes back to "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373, appendix on the repetition
penalty). Different from both: the units are words, numbers, signs and single ideographs instead of what lies between
blanks, so that a loop without a blank in it is seen.
"""

import re

_UNIT = re.compile(r"[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+|\d+|[^\w\s]|_")
_LONGEST_UNIT = 24  # characters; a longer one is cut into pieces, or one endless word would hide its loop


def repetition(text: str, size: int) -> float:
    """The penalty for n-grams of `size` units: 0 where none occurs twice, or none fits in; towards −1 for a loop."""
    units = [
        unit[start : start + _LONGEST_UNIT]
        for unit in _UNIT.findall(text.lower())
        for start in range(0, len(unit), _LONGEST_UNIT)
    ]
    count = len(units) - size + 1
    if count <= 0:
        return 0.0
    different = len(set(zip(*(units[offset:] for offset in range(size)), strict=False)))
    return different / count - 1.0
