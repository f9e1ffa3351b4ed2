"""Worked solutions must be right at every step: they are what models learn from."""

import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.generated import problems as generated
from pipeline.generated.corpus import documents
from pipeline.params import GeneratedCorpus, GeneratedSource
from pipeline.records import is_held_out

NUMBER = st.integers(min_value=1, max_value=99_999)


def _digits(partials: list[int]) -> int:
    """The number whose digits from the right are the last digits of the partial results; the last one counts whole."""
    return sum((p if i == len(partials) - 1 else p % 10) * 10**i for i, p in enumerate(partials))


@given(NUMBER, NUMBER)
def test_every_step_of_a_sum_is_true(a: int, b: int) -> None:
    steps = re.findall(r"(\d)\+(\d)\+(\d)=(\d+)", generated.worked_sum(a, b))
    assert all(int(x) + int(y) + int(c) == int(s) for x, y, c, s in steps)
    assert _digits([int(s) for *_, s in steps]) == a + b
    assert generated.worked_sum(a, b).endswith(f";{a + b}")


@given(NUMBER, NUMBER)
def test_every_step_of_a_difference_is_true(a: int, b: int) -> None:
    a, b = max(a, b), min(a, b)
    steps = re.findall(r"(\d)-(\d)-(\d)=(\d)(b?)", generated.worked_difference(a, b))
    assert all(int(x) - int(y) - int(c) == int(r) - 10 * bool(borrow) for x, y, c, r, borrow in steps)
    assert sum(int(r) * 10**i for i, (*_, r, _borrow) in enumerate(steps)) == a - b
    assert generated.worked_difference(a, b).endswith(f";{a - b}")


@given(st.integers(2, 9), NUMBER)
def test_every_step_of_a_product_is_true(a: int, b: int) -> None:
    steps = re.findall(r"(\d)\*(\d)\+(\d)=(\d+)", generated.worked_product(a, b))
    assert all(int(x) * int(y) + int(c) == int(p) for x, y, c, p in steps)
    assert _digits([int(p) for *_, p in steps]) == a * b


@pytest.mark.parametrize("family", sorted(set(generated.FAMILIES) - {"request"}))
def test_a_family_answers_its_own_question(family: str) -> None:
    for _, item in zip(range(300), generated.items({family: 1.0}, "test"), strict=False):
        assert item.task == family
        assert item.gold == _solve(item.prompt)
        assert item.thinking.endswith(item.gold) or family == "reverse"


def _solve(prompt: str) -> str:
    """An independent solution of every kind of prompt."""
    numbers = [int(n) for n in re.findall(r"\d+", prompt)]
    if prompt.startswith("largest"):
        return str(max(numbers))
    if prompt.startswith("reverse"):
        return prompt.removeprefix("reverse ")[::-1]
    if prompt.startswith("count"):
        letter, word = re.fullmatch(r"count (\w) in (\w+)", prompt).groups()  # type: ignore[union-attr]
        return str(word.count(letter))
    if "odd or even" in prompt:
        return ("even", "odd")[numbers[0] % 2]
    if "How many now" in prompt:
        gains = any(f" {verb} " in prompt for verb in generated.GAINS)
        return str(numbers[0] + numbers[1] if gains else numbers[0] - numbers[1])
    operator = re.search(r"[+*-]", prompt)[0]  # type: ignore[index]
    return str({"+": sum(numbers), "-": numbers[0] - numbers[-1], "*": numbers[0] * numbers[-1]}[operator])


def _source(problems: int, **families: float) -> GeneratedSource:
    return GeneratedSource(kind="generated", name="g", problems=problems, families=families)


def test_prompts_differ_and_the_seed_decides() -> None:
    source = _source(500, sum=1.0, story=1.0)
    rows = list(generated.problems(source, 1))
    assert len({row["prompt"] for row in rows}) == 500
    assert rows == list(generated.problems(source, 1))
    assert rows != list(generated.problems(source, 2))


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(InputError, match="riddle"):
        next(generated.items({"riddle": 1.0}, "test"))


def test_more_problems_than_a_family_has_are_refused() -> None:
    with pytest.raises(InputError, match="different problems"):
        list(generated.problems(_source(10_000, product=1.0), 0))


def test_the_corpus_leaves_out_the_evaluation_split_and_mixes_styles() -> None:
    corpus = GeneratedCorpus(documents=2000, worked=0.4, families={"sum": 1.0})
    texts = list(documents(corpus, seed=0, held_out=0.2))
    prompts = [re.search(r"<\|user\|>(.*)<\|assistant\|>", text)[1] for text in texts]  # type: ignore[index]
    assert len(texts) == 2000
    assert not any(is_held_out(prompt, 0, 0.2) for prompt in prompts)
    assert 0.35 < sum("<think></think>" not in text for text in texts) / len(texts) < 0.45


def test_the_order_of_the_families_makes_no_difference() -> None:
    families = {"sum": 0.5, "count": 0.3, "request": 0.2}
    one, other = (list(islice(generated.items(mix, "test"), 50)) for mix in (families, dict(sorted(families.items()))))
    assert one == other
