"""Arithmetic and string problems of graded difficulty with worked solutions, and everyday requests, made from a seed.

They let the whole recipe run without a download, and they are honest tests of reasoning for a small model: too hard to
guess in one step, easy once the work is written out. A solution shows every carry, so that each token follows from
few tokens before it.
"""

import random
from collections.abc import Callable, Iterator, Mapping

from pipeline.errors import InputError
from pipeline.generated.item import Item
from pipeline.generated.requests import NAMES, THINGS, request
from pipeline.params import GeneratedSource


def worked_sum(a: int, b: int) -> str:
    """`a+b` digit by digit from the right: digit + digit + carry = partial sum."""
    steps, carry = [], 0
    for x, y in _digits(a, b):
        steps.append(f"{x}+{y}+{carry}={x + y + carry}")
        carry = (x + y + carry) // 10
    return f"{a}+{b}:{','.join(steps)};{a + b}"


def worked_difference(a: int, b: int) -> str:
    """`a-b` (a ≥ b) digit by digit from the right: digit − digit − borrow = digit, with a `b` where ten is borrowed."""
    steps, borrow = [], 0
    for x, y in _digits(a, b):
        rest = x - y - borrow
        steps.append(f"{x}-{y}-{borrow}={rest % 10}" + "b" * (rest < 0))
        borrow = int(rest < 0)
    return f"{a}-{b}:{','.join(steps)};{a - b}"


def worked_product(a: int, b: int) -> str:
    """`a*b` for a one-digit `a`, digit by digit of `b` from the right: a × digit + carry = partial product."""
    steps, carry = [], 0
    for y in map(int, reversed(str(b))):
        steps.append(f"{a}*{y}+{carry}={a * y + carry}")
        carry = (a * y + carry) // 10
    return f"{a}*{b}:{','.join(steps)};{a * b}"


def _digits(a: int, b: int) -> Iterator[tuple[int, int]]:
    while a or b:
        yield a % 10, b % 10
        a, b = a // 10, b // 10


def _sum(rng: random.Random) -> Item:
    level = rng.choice((1, 1, 2, 3))
    terms = [rng.randint(100, 999) if level == 3 else rng.randint(1, 99) for _ in range(3 if level == 2 else 2)]
    lines, total = [], terms[0]
    for term in terms[1:]:
        lines.append(worked_sum(total, term))
        total += term
    return Item("sum", f"{'+'.join(map(str, terms))}=?", "\n".join(lines), str(total), "numeric", level)


def _difference(rng: random.Random) -> Item:
    level = rng.choice((1, 2))
    largest = 99 if level == 1 else 999
    b, a = sorted((rng.randint(1, largest), rng.randint(1, largest)))
    return Item("difference", f"{a}-{b}=?", worked_difference(a, b), str(a - b), "numeric", level)


def _product(rng: random.Random) -> Item:
    level = rng.choice((1, 2))
    a, b = rng.randint(2, 9), rng.randint(11, 99) if level == 1 else rng.randint(101, 999)
    return Item("product", f"{a}*{b}=?", worked_product(a, b), str(a * b), "numeric", level)


def _largest(rng: random.Random) -> Item:
    numbers = [rng.randint(10, 999) for _ in range(rng.randint(3, 5))]
    lines, best = [], numbers[0]
    for number in numbers[1:]:
        lines.append(f"{best}{'<' if best < number else '>'}{number}:{max(best, number)}")
        best = max(best, number)
    prompt = f"largest of {' '.join(map(str, numbers))}?"
    return Item("largest", prompt, ",".join(lines), str(best), "numeric", len(numbers) - 2, "en")


def _word(rng: random.Random, shortest: int, longest: int) -> str:
    """A pronounceable nonsense word, so that no solution can be looked up."""
    letters = ("bcdfglmnprst", "aeiou")
    return "".join(rng.choice(letters[i % 2]) for i in range(rng.randint(shortest, longest)))


def _reverse(rng: random.Random) -> Item:
    word = _word(rng, 3, 8)
    numbered = [f"{index}{letter}" for index, letter in enumerate(word, start=1)]
    thinking = f"{' '.join(numbered)};{' '.join(reversed(numbered))}"
    return Item("reverse", f"reverse {word}", thinking, word[::-1], "exact", len(word) - 2, "en")


def _count(rng: random.Random) -> Item:
    word = _word(rng, 4, 9)
    letter = rng.choice(word)
    seen, steps = 0, []
    for character in word:
        seen += character == letter
        steps.append(f"{character}{seen}")
    return Item(
        "count", f"count {letter} in {word}", f"{' '.join(steps)};{seen}", str(seen), "numeric", len(word), "en"
    )


def _parity(rng: random.Random) -> Item:
    level = rng.choice((1, 2, 3))
    number = rng.randint(10 ** (level - 1), 10**level - 1)
    answer = "odd" if number % 2 else "even"
    return Item("parity", f"is {number} odd or even?", f"{number % 10} is {answer}", answer, "exact", level, "en")


GAINS = ("buys", "finds", "gets", "wins")
LOSSES = ("sells", "loses", "gives away", "drops")


def _story(rng: random.Random) -> Item:
    name, thing, gain = rng.choice(NAMES), rng.choice(THINGS), rng.random() < 0.5
    small, large = sorted((rng.randint(2, 99), rng.randint(2, 99)))
    verb = rng.choice(GAINS if gain else LOSSES)
    prompt = f"{name} has {large} {thing} and {verb} {small}. How many now?"
    thinking = worked_sum(large, small) if gain else worked_difference(large, small)
    return Item("story", prompt, thinking, str(large + small if gain else large - small), "numeric", 1, "en")


FAMILIES: Mapping[str, Callable[[random.Random], Item]] = {
    "sum": _sum,
    "difference": _difference,
    "product": _product,
    "largest": _largest,
    "reverse": _reverse,
    "count": _count,
    "parity": _parity,
    "story": _story,
    "request": request,
}


def items(families: Mapping[str, float], seed: str) -> Iterator[Item]:
    """Endless seeded mix of problems; `families` gives each family's weight, in any order. Prompts may repeat."""
    unknown = sorted(set(families) - set(FAMILIES))
    if unknown:
        raise InputError(f"families: {unknown}: must be among {sorted(FAMILIES)}")
    rng = random.Random(seed)
    names = [name for name in FAMILIES if name in families]
    weights = [families[name] for name in names]
    while True:
        yield FAMILIES[rng.choices(names, weights)[0]](rng)


def problems(source: GeneratedSource, seed: int) -> Iterator[dict[str, str | float]]:
    """The rows of a `generated` source, all prompts different."""
    seen: set[str] = set()
    attempts = 0
    for item in items(source.families, f"{source.name}/{seed}"):
        if len(seen) == source.problems:
            return
        attempts += 1
        if attempts > 20 * source.problems:
            raise InputError(
                f"curation.sources.{source.name}.problems: {source.problems}: the families {sorted(source.families)} "
                f"gave only {len(seen)} different problems in {attempts} draws"
            )
        if item.prompt in seen:
            continue
        seen.add(item.prompt)
        yield {
            "prompt": item.prompt,
            "gold": item.gold,
            "verifier": item.verifier,
            "task": item.task,
            "difficulty": float(item.difficulty),
            "thinking": item.thinking,
            "language": item.language,
        }
