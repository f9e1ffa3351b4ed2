"""The text that a base model is trained on from scratch.

The corpus mixes terse answers with worked ones, as text in the wild does. A base that has seen nothing but worked ones
leaves reinforcement learning no choice to reinforce.
"""

import random
from collections.abc import Iterator
from itertools import islice

from pipeline import chat
from pipeline.generated.problems import items
from pipeline.params import GeneratedCorpus
from pipeline.records import is_held_out


def documents(corpus: GeneratedCorpus, seed: int, held_out: float) -> Iterator[str]:
    """Yield `corpus.documents` conversations of one turn. No prompt of the evaluation split is among them."""
    rng = random.Random(f"corpus/style/{seed}")
    allowed = (
        item for item in items(corpus.families, f"corpus/{seed}") if not is_held_out(item.prompt, seed, held_out)
    )
    for item in islice(allowed, corpus.documents):
        thinking = item.thinking if rng.random() < corpus.worked else ""
        yield chat.render_prompt(item.prompt) + chat.render_completion(thinking, item.gold)
