"""Who may ask, how often, and from where."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.serving.errors import RequestError
from pipeline.serving.limits import Keys, Rates, check_address, read_keys

FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"


def scope(**headers: str) -> dict[str, Any]:
    return {"headers": [(name.encode(), value.encode()) for name, value in headers.items()], "client": ("10.0.0.9", 1)}


def test_keys_come_from_file_and_environment(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# of the team\n{FIRST} # ours\n\n")
    assert read_keys(tmp_path / "keys", {"R1FLOW_API_KEYS": f"{SECOND},"}) == [SECOND, FIRST]
    assert read_keys(None, {}) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# none\n", "at least one"),
        ("short\n", "keys:1: an API key must be 16"),
        ("two words of a key 1\n", "no space"),
    ],
)
def test_a_file_of_bad_keys_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(InputError, match=message):
        read_keys(tmp_path / "keys", {})
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "absent", {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", ""])
def test_an_address_that_others_reach_takes_keys(host: str) -> None:
    with pytest.raises(InputError, match="API keys must be given"):
        check_address(host, [])
    check_address(host, [FIRST])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_alone_takes_none(host: str) -> None:
    check_address(host, [])


def test_every_key_is_let_in_and_nothing_else() -> None:
    keys = Keys([FIRST, SECOND])
    assert keys.caller(scope(authorization=f"Bearer {FIRST}")) != keys.caller(scope(authorization=f"bearer {SECOND}"))
    for wrong in ("", f"Basic {FIRST}", "Bearer ", f"Bearer {FIRST[:-1]}", FIRST, "Bearer é"):
        with pytest.raises(RequestError, match="valid API key") as refused:
            keys.caller(scope(authorization=wrong))
        assert refused.value.status == 401


def test_without_keys_only_names_of_this_machine_are_answered() -> None:
    keys = Keys([])
    for host in ("localhost:8000", "127.0.0.1", "127.0.0.2:8000", "[::1]:80", "LOCALHOST"):
        assert keys.caller(scope(host=host)) == "10.0.0.9"
    for host in ("evil.example:8000", "localhost.evil.example", "127.0.0.2.evil.example", "10.0.0.9", "", "[::1"):
        with pytest.raises(RequestError) as refused:
            keys.caller(scope(host=host))
        assert refused.value.status == 403


def test_a_caller_who_asks_too_often_is_told_when_to_come_back() -> None:
    rates = Rates(2)
    rates.take("a", 0.0)
    rates.take("a", 0.0)
    with pytest.raises(RequestError) as refused:
        rates.take("a", 1.0)
    assert refused.value.status == 429
    assert refused.value.headers == {"Retry-After": "30"}
    rates.take("b", 1.0)
    rates.take("a", 31.0)
