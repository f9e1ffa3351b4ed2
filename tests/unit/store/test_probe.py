"""Servers that pass over conditions are found out."""

import pytest

from pipeline.errors import InputError
from pipeline.store import Content, Store
from pipeline.store.probe import require_conditions


def test_a_sound_store_is_left_as_it_was(store: Store) -> None:
    store.create("key", b"x")
    require_conditions(store)
    assert list(store.list()) == ["key"]


class Careless:
    """Keeps only those conditions that it is told to."""

    def __init__(self, *, creates_once: bool) -> None:
        self._creates_once = creates_once
        self._objects: dict[str, bytes] = {}

    def create(self, key: str, data: bytes) -> bool:
        if self._creates_once and key in self._objects:
            return False
        self._objects[key] = data
        return True

    def read(self, key: str) -> Content | None:
        return Content(self._objects[key], "version")

    def replace(self, key: str, data: bytes, version: str) -> bool:
        self._objects[key] = data
        return True

    def delete(self, key: str) -> None:
        del self._objects[key]


@pytest.mark.parametrize(("creates_once", "header"), [(False, "If-None-Match"), (True, "If-Match")])
def test_a_condition_that_is_not_kept_is_named(creates_once: bool, header: str) -> None:
    with pytest.raises(InputError, match=header):
        require_conditions(Careless(creates_once=creates_once))  # type: ignore[arg-type]
