"""Requests without a right answer, and pairs of better and worse replies to them."""

import random

from pipeline.generated import requests
from pipeline.params import GeneratedSource


def _source(pairs: int) -> GeneratedSource:
    return GeneratedSource(kind="generated", name="g", problems=1, families={"sum": 1.0}, pairs=pairs)


def _about(text: str, choices: tuple[str, ...]) -> set[str]:
    return {choice for choice in choices if choice in text}


def test_a_reply_is_about_what_the_request_is_about_and_as_often_kind_as_curt() -> None:
    rng = random.Random(0)
    items = [requests.request(rng) for _ in range(2000)]
    curt = 0
    for item in items:
        assert (item.task, item.verifier, item.language) == ("request", "none", "en")
        for choices in (requests.NAMES, requests.THINGS):
            assert _about(item.prompt, choices) == _about(item.gold, choices) == _about(item.thinking, choices)
        curt += any(
            item.gold == text.format(name=name, thing=thing)
            for kind in requests._KINDS
            for text in kind.curt
            for name in _about(item.prompt, requests.NAMES)
            for thing in _about(item.prompt, requests.THINGS)
        )
    assert 0.45 < curt / len(items) < 0.55


def test_pairs_do_not_give_themselves_away_by_length() -> None:
    pairs = list(requests.preference_pairs(_source(1500), 0))
    chosen, rejected = (sum(len(getattr(pair, side)) for pair in pairs) for side in ("chosen", "rejected"))
    assert abs(chosen - rejected) / chosen < 0.05
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs)
    shorter = sum(len(pair.chosen) < len(pair.rejected) for pair in pairs)
    assert 0.4 < longer / (longer + shorter) < 0.6
    assert len({pair.prompt for pair in pairs}) == len(pairs) == 1500


def test_the_better_reply_is_about_the_request_and_some_worse_ones_go_astray() -> None:
    astray = 0
    pairs = list(requests.preference_pairs(_source(1000), 3))
    for pair in pairs:
        for choices in (requests.NAMES, requests.THINGS):
            assert _about(pair.prompt, choices) == _about(pair.chosen, choices)
        assert pair.chosen != pair.rejected
        astray += any(_about(pair.prompt, c) != _about(pair.rejected, c) for c in (requests.NAMES, requests.THINGS))
    assert 0.25 < astray / len(pairs) < 0.35


def test_the_seed_decides() -> None:
    assert list(requests.preference_pairs(_source(50), 1)) == list(requests.preference_pairs(_source(50), 1))
    assert list(requests.preference_pairs(_source(50), 1)) != list(requests.preference_pairs(_source(50), 2))
