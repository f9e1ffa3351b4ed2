"""Does a store keep the conditions that everything here rests on? Some S3-compatible servers pass over them."""

import uuid

from pipeline.errors import InputError
from pipeline.store.interface import Store


def require_conditions(store: Store) -> None:
    """Raises InputError where the store writes in spite of a condition; leaves nothing behind."""
    key = f".probe-{uuid.uuid4().hex}"
    try:
        if not store.create(key, b"first") or store.create(key, b"second"):
            raise InputError(f"{store}: creates what is there already: it must know If-None-Match on put")
        found = store.read(key)
        if (
            found is None
            or not store.replace(key, b"third", found.version)
            or store.replace(key, b"4th", found.version)
        ):
            raise InputError(f"{store}: replaces what was changed meanwhile: it must know If-Match on put")
    finally:
        store.delete(key)
