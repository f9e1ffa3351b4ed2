"""Typed reading of a config.json, so that each wrong value is reported with its key, itself and the rule it breaks."""

import difflib
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from pipeline.errors import InputError


class Fields:
    """The keys of one JSON object. As in transformers, null and absent mean the same; `default` None means required.

    `prefix` says where the object stands in `file`.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "", file: str = "config.json") -> None:
        self._values, self.prefix, self.file = values, prefix, file
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def refuse(self, key: str, rule: str) -> NoReturn:
        raise InputError(f"{self.file}: {self.prefix}{key} = {self._values.get(key)!r}: {rule}")

    def refuse_unread(self) -> None:
        """Refuse a key that nobody has asked for."""
        for key in self._values:
            if key not in self._read:
                close = difflib.get_close_matches(key, self._read, n=1)
                self.refuse(key, "there is no such key" + "".join(f"; did you mean {other}?" for other in close))

    def must_be(self, key: str, only: Any) -> None:
        """Refuse every value but `only`, which is also what an absent key means."""
        if self.get(key, only) != only:
            self.refuse(key, f"must be {only!r}, nothing else is supported")

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> Any:
        value = self.get(key, default)
        if value not in choices:
            self.refuse(key, f"must be one of {', '.join(choices)}")
        return value

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self.refuse(key, f"must be a whole number of at least {minimum}")
        return value

    def number(self, key: str, default: float | None = None, above: float = -math.inf) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
            self.refuse(key, "must be a finite number" + ("" if above == -math.inf else f" above {above:g}"))
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "must be true or false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """The object under `key` without its nulls, empty if there is none."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            self.refuse(key, "must be an object")
        return {inner: item for inner, item in value.items() if item is not None}

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.get(key, [])
        if not isinstance(value, list | tuple) or any(isinstance(i, bool) or not isinstance(i, int) for i in value):
            self.refuse(key, "must be a list of whole numbers")
        return tuple(value)

    def token(self, key: str) -> int | None:
        return None if self.get(key) is None else self.integer(key, minimum=-1)

    def tokens(self, key: str) -> int | tuple[int, ...] | None:
        return self.integers(key) if isinstance(self.get(key), list | tuple) else self.token(key)
