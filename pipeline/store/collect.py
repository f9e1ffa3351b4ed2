"""What a store holds, and what in it nothing references: for who keeps it tidy.

Only keys of an archive (archive.py) are looked at; the ledger and whatever else lies in the store is left alone. What
is younger than the grace is taken for part of a copy that is under way. Objects are listed before pointers are read, so
that what is referenced meanwhile is seen; and nothing is removed where a pointer or manifest cannot be read.
"""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.store.archive import GRACE_SECONDS, MANIFESTS, OBJECTS, POINTERS, Archive
from pipeline.store.interface import Entry, Store

KEY = re.compile(rf"(?P<archive>(checkpoints/[^/]+/[^/]+/)?)(?P<kind>{OBJECTS}|{MANIFESTS}|{POINTERS})(?P<name>.+)")
Names = dict[str, Entry]  # name within an archive → what lies there


@dataclass(frozen=True, slots=True)
class Holding:
    """What one archive holds."""

    prefix: str  # "" for releases, checkpoints/<stage>/<key>/ for the checkpoints of a piece of work
    objects: Names = field(default_factory=dict)
    manifests: Names = field(default_factory=dict)
    pointers: Names = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry.size for entry in self.entries())

    @property
    def moved(self) -> float:
        """When a pointer was moved last, Unix time; 0 where there is none."""
        return max((entry.modified for entry in self.pointers.values()), default=0.0)

    def entries(self) -> Iterator[Entry]:
        for names in (self.pointers, self.manifests, self.objects):
            yield from names.values()


def holdings(store: Store) -> list[Holding]:
    """The archives of a store, by prefix."""
    found: dict[str, Holding] = {}
    for entry in store.entries():
        if match := KEY.fullmatch(entry.key):
            holding = found.setdefault(match["archive"], Holding(match["archive"]))
            {OBJECTS: holding.objects, MANIFESTS: holding.manifests, POINTERS: holding.pointers}[match["kind"]][
                match["name"]
            ] = entry
    return [found[prefix] for prefix in sorted(found)]


def unreferenced(store: Store, *, unused_days: float, now: float | None = None) -> list[Entry]:
    """What can go, pointers first, so that a kill on the way leaves no pointer to something missing.

    That is what no pointer leads to, and all the checkpoints of work whose pointer has not moved for `unused_days`: it
    is done, or given up. Raises InputError where a pointer or a manifest that it leads to cannot be read.
    """
    now = time.time() if now is None else now
    entries: list[Entry] = []
    for holding in holdings(store):
        if holding.prefix and holding.pointers and now - holding.moved > unused_days * 86_400:
            entries += holding.entries()
        else:
            entries += _loose(store, holding, now)
    return entries


def _loose(store: Store, holding: Holding, now: float) -> Iterator[Entry]:
    """What no pointer of an archive leads to. What a young manifest names counts as if one did."""
    archive = Archive(store, holding.prefix)
    # Listed once more, after the objects: also those count that are new since.
    at = {
        kind: {entry.key.rpartition(kind)[2]: entry for entry in store.entries(holding.prefix + kind)}
        for kind in (MANIFESTS, POINTERS)
    }
    pointers = [archive.pointer(name) for name in at[POINTERS]]
    kept = {manifest for pointer in pointers if pointer is not None for manifest in pointer.manifests}
    kept |= {name for name, entry in at[MANIFESTS].items() if now - entry.modified <= GRACE_SECONDS}
    used = {file.sha256 for manifest in kept for file in archive.manifest(manifest).values()}
    for names, needed in ((holding.manifests, kept), (holding.objects, used)):
        for name, entry in names.items():
            if name not in needed and now - entry.modified > GRACE_SECONDS:
                yield entry


def remove(store: Store, entries: Iterable[Entry]) -> Iterator[Entry]:
    """Delete, and tell of each as it goes. What was written again since it was listed stays; a pointer with all of its
    archive.
    """
    alive: set[str] = set()
    for entry in entries:
        match = KEY.fullmatch(entry.key)
        assert match is not None, f"{entry.key} is no key of an archive"
        found = store.stat(entry.key)
        if found is None or match["archive"] in alive:
            continue
        if int(found.modified) > int(entry.modified):  # a listing may be more exact than a look at one object
            if match["kind"] == POINTERS:
                alive.add(match["archive"])
            continue
        store.delete(entry.key)
        yield entry
