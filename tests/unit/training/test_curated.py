"""A corpus of curation's own problems: who is in it, how often, and in which style."""

import math
from collections import Counter, defaultdict

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import chat
from pipeline.errors import InputError
from pipeline.params import CuratedCorpus
from pipeline.records import Problem, Split, Trace, schema
from pipeline.training.curated import curated_documents, read_curated


def problem(name: str, split: Split = "train") -> Problem:
    return Problem(name, "own", "task", f"question {name}", f"gold {name}", "exact", "en", None, split)


def tables(traces: dict[str, int]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Problems by name with so many traces each; and one of the evaluation split."""
    problems = [*map(problem, traces), problem("held out", "evaluation")]
    works = [
        Trace(name, f"work {n} of {name}", f"gold {name}", "own") for name, many in traces.items() for n in range(many)
    ]
    return pl.DataFrame(problems, schema=schema(Problem)), pl.DataFrame(works, schema=schema(Trace))


def documents(traces: dict[str, int], count: int, worked: float, seed: int = 0) -> list[str]:
    corpus = CuratedCorpus(kind="curated", documents=count, worked=worked)
    return list(curated_documents(corpus, *tables(traces), seed))


def thinkings(texts: list[str]) -> dict[str, list[str]]:
    """Problem → the thinking of each of its documents, in order."""
    found = defaultdict(list)
    for text in texts:
        prompt, completion = text.split("<|assistant|>")
        parsed = chat.parse_completion(completion)
        name = prompt.removeprefix("<bos><|user|>question ")
        assert parsed.answer == f"gold {name}"
        found[name].append(parsed.thinking)
    return found


@given(st.integers(1, 6), st.integers(1, 40), st.floats(0, 1), st.integers(0, 9))
def test_every_problem_comes_alike_often_and_shows_its_share_of_work(
    problems: int, count: int, worked: float, seed: int
) -> None:
    seen = thinkings(documents({f"p{n}": 1 for n in range(problems)}, count, worked, seed))
    times = [len(seen.get(f"p{n}", [])) for n in range(problems)]
    assert sum(times) == count
    assert max(times) - min(times) <= 1
    for one in seen.values():
        share = len(one) * worked
        assert math.floor(share - 1e-6) <= sum(map(bool, one)) <= math.ceil(share + 1e-6)


def test_the_share_holds_within_one_pass_too() -> None:
    seen = thinkings(documents({f"p{n}": 1 for n in range(2000)}, 2000, 0.7))
    assert sum(one != [""] for one in seen.values()) == pytest.approx(1400, abs=80)


def test_traces_take_turns_and_a_problem_without_one_is_terse() -> None:
    seen = thinkings(documents({"a": 3, "b": 0}, 12, 1.0))
    assert Counter(seen["a"]) == {f"work {n} of a": 2 for n in range(3)}
    assert set(seen["b"]) == {""}


def test_nothing_of_the_evaluation_split_is_in_it() -> None:
    assert set(thinkings(documents({"a": 1}, 5, 0.5))) == {"a"}
    with pytest.raises(InputError, match="no problem in its train split"):
        documents({}, 5, 0.5)


def test_it_is_a_function_of_its_seed() -> None:
    traces = {f"p{n}": 2 for n in range(20)}
    assert documents(traces, 50, 0.5) == documents(traces, 50, 0.5) != documents(traces, 50, 0.5, seed=1)


def test_the_tables_are_curations(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("curation")
    for name, table in zip(("problems", "traces"), tables({"a": 1}), strict=True):
        table.write_parquet(folder / f"{name}.parquet")
    problems, traces = read_curated(folder / "problems.parquet", folder / "traces.parquet")
    assert problems["id"].to_list() == ["a", "held out"]
    assert traces["problem_id"].to_list() == ["a"]
