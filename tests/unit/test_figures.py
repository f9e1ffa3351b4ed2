"""Figures in words."""

import pytest

from pipeline.figures import duration, money, number, scaled


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (3600, "1 h 0 min"), (90_061, "1 d 1 h")],
)
def test_durations_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0, "0.00 EUR"), (0.00312, "0.0031 EUR"), (0.5, "0.50 EUR"), (1.1e-5, "0.000011 EUR"), (1234.5, "1,234.50 EUR")],
)
def test_money_shows_small_amounts_too(amount: float, text: str) -> None:
    assert money(amount, "EUR") == text


def test_numbers_and_sizes() -> None:
    assert (number(7_393_600), number(0.868749)) == ("7,393,600", "0.8687")
    assert [scaled(value) for value in (999, 7_393_600, 1.2e12, 0)] == ["999", "7.39 M", "1.2 T", "0"]
    assert scaled(3 * 2**30, "B", 1024) == "3 GiB"
