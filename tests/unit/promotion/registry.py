"""A registry of three versions, in place of MLflow's, and what may happen to them."""

from pipeline.promotion.ledger import Event, Kind, Mark
from pipeline.promotion.outcome import ASKED
from pipeline.tracking import Version

ONE, TWO, THREE = (Mark(number, str(number) * 64) for number in (1, 2, 3))


def event(kind: Kind, before: Mark | None, after: Mark, identity: str = "", *, tried: bool = True) -> Event:
    return Event(identity or f"{kind} {after.version}", "ada", kind, "m", before, after, "why", tried)


class CutError(BaseException):
    """As a kill: nothing catches it."""


class Registry:
    """As pipeline.tracking.Aliases; ends at its call number `cut`."""

    def __init__(self, champion: int) -> None:
        self.now, self.tags = champion, {number: {ASKED: "{}"} for number in (1, 2, 3)}
        self.cut: int | None = None

    def _call(self) -> None:
        if self.cut is not None:
            self.cut -= 1
            if self.cut < 0:
                raise CutError

    def champion(self, model: str) -> Version | None:
        self._call()
        return self.version(model, self.now)

    def version(self, model: str, number: int) -> Version:
        return Version(model, number, str(number) * 64, "", dict(self.tags[number]))

    def move(self, version: Version) -> None:
        self._call()
        self.now = version.number

    def tag(self, version: Version, name: str, value: str | None) -> None:
        self._call()
        if value is None:
            self.tags[version.number].pop(name, None)
        else:
            self.tags[version.number][name] = value
