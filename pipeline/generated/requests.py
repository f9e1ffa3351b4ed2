"""Everyday requests that have no right answer, only better and worse ones: what the preference model learns from.

As text in the wild does, replies come kind and curt alike, so that training on them leaves reinforcement learning
something to prefer. Better and worse replies are about equally long: a reward model cannot learn length instead.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.generated.item import Item
from pipeline.params import GeneratedSource
from pipeline.records import PreferencePair

NAMES = (
    *("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Leo", "Mia", "Noor"),
    *("Omar", "Pia", "Quin", "Rosa", "Sam", "Tara", "Uma", "Vera", "Wes", "Zoe"),
)
THINGS = (
    *("apples", "books", "cards", "coins", "eggs", "maps", "nuts", "pens", "shells", "stamps"),
    *("beads", "cups", "keys", "lamps", "plums", "shoes"),
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of request, and what can be said to it."""

    prompt: str
    thinking: str
    kind: tuple[str, ...]
    curt: tuple[str, ...]


_KINDS = (
    _Kind(
        "Thank {name} for the {thing}.",
        "thank {name}, {thing}",
        ("Thank you, {name}, for the lovely {thing}!", "{name}, the {thing} are great, many thanks!"),
        ("{name}, these {thing} are really no good.", "I did not want any {thing}, {name}."),
    ),
    _Kind(
        "{name} lost the {thing}. What do you say?",
        "comfort {name}, {thing}",
        ("I am so sorry about the {thing}, {name}.", "Poor {name}, let us look for the {thing}."),
        ("Losing {thing} is your own fault, {name}.", "{name}, you always lose your {thing}."),
    ),
    _Kind(
        "Ask {name} for {thing}.",
        "ask {name}, {thing}",
        ("{name}, may I please have some {thing}?", "Could you share some {thing}, {name}?"),
        ("{name}, give me those {thing} right now.", "Hand over the {thing}, {name}, at once."),
    ),
    _Kind(
        "Offer {name} some {thing}.",
        "offer {name}, {thing}",
        ("Would you like some {thing}, {name}?", "Please take some {thing}, dear {name}."),
        ("Take the {thing} or leave, {name}.", "{name}, here are {thing}, do not whine."),
    ),
    _Kind(
        "Tell {name} that the {thing} are gone.",
        "tell {name}, no {thing}",
        ("Sorry, {name}, the {thing} are all gone.", "{name}, I am afraid there are no {thing}."),
        ("No {thing} for you, {name}, too late.", "The {thing} are gone, {name}, tough luck."),
    ),
    _Kind(
        "Invite {name} to see the {thing}.",
        "invite {name}, {thing}",
        ("Please come and see the {thing}, {name}!", "{name}, we would love to show you {thing}."),
        ("Come see the {thing}, {name}, or do not.", "{name}, look at {thing} if you really must."),
    ),
    _Kind(
        "Praise {name} for the {thing}.",
        "praise {name}, {thing}",
        ("Well done, {name}, what fine {thing}!", "{name}, your {thing} are wonderful!"),
        ("I have seen better {thing}, {name}.", "{name}, your {thing} are so boring."),
    ),
    _Kind(
        "Ask {name} to bring back the {thing}.",
        "ask {name} back, {thing}",
        ("{name}, could you bring back the {thing}?", "Please return the {thing} soon, {name}."),
        ("Bring back my {thing} now, {name}, now.", "{name}, you thief, where are my {thing}?"),
    ),
    _Kind(
        "Wish {name} luck with the {thing}.",
        "wish {name} luck, {thing}",
        ("Good luck with the {thing}, dear {name}!", "{name}, I hope the {thing} go well!"),
        ("The {thing} will go wrong, {name}, bye.", "You will fail with {thing}, {name}."),
    ),
)

ASTRAY = 0.3  # of the pairs have for the worse reply a kind one about somebody or something else


def request(rng: random.Random) -> Item:
    """A request with a reply, which is as often kind as curt."""
    about = {"name": rng.choice(NAMES), "thing": rng.choice(THINGS)}
    kind = rng.choice(_KINDS)
    reply = rng.choice(kind.kind if rng.random() < 0.5 else kind.curt)
    return Item(
        "request", kind.prompt.format(**about), kind.thinking.format(**about), reply.format(**about), "none", 1, "en"
    )


def preference_pairs(source: GeneratedSource, seed: int) -> Iterator[PreferencePair]:
    """`source.pairs` pairs, all prompts different: a kind reply, and a curt one or one that goes astray."""
    rng = random.Random(f"{source.name}/pairs/{seed}")
    cases = [(kind, name, thing) for kind in _KINDS for name in NAMES for thing in THINGS]
    for kind, name, thing in rng.sample(cases, min(source.pairs, len(cases))):
        about = {"name": name, "thing": thing}
        if rng.random() < ASTRAY:
            wrong = rng.choice(("name", "thing"))
            others = [other for other in (NAMES if wrong == "name" else THINGS) if other != about[wrong]]
            rejected = rng.choice(kind.kind).format(**about | {wrong: rng.choice(others)})
        else:
            rejected = rng.choice(kind.curt).format(**about)
        chosen = rng.choice(kind.kind).format(**about)
        yield PreferencePair(kind.prompt.format(**about), chosen, rejected, source.name)
