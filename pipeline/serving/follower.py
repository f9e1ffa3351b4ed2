"""The server follows the champion: what the alias names is tried beside the model that answers, and takes over or not.

    look at the alias → fetch and verify → load → smoke questions → held-out problems → shadow live requests
    → switch → drain the old one, record it → watch

Whatever goes wrong before the switch leaves the old model answering. What speaks against the version refuses it; what
says nothing about it, a store that does not answer or a disk that is full, is tried again later. After the switch, a
model that goes over a bound is rolled back. pipeline/promotion/outcome.py says how each end is recorded, and why a kill
at any moment loses nothing: at a start the model that the ledger calls champion answers first, and an alias that names
another one is a new attempt.

Back to the champion before is a way out, not a contest: it is fetched, verified, loaded and asked the smoke questions,
and need not be as good as the one that it replaces.
"""

import asyncio
import fcntl
import logging
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.promotion.copies import fetch, keep_only
from pipeline.promotion.hand import champion_model
from pipeline.promotion.ledger import Entry, Event, Kind, Ledger, Mark, champions
from pipeline.promotion.outcome import Announce, Outcomes, asked_by, mark
from pipeline.running import serving_folder
from pipeline.serving.app import Service
from pipeline.serving.engines import Engine, EngineLostError
from pipeline.serving.tally import Bounds
from pipeline.serving.trial import Shadow, TrialFailedError, held_out, right_share, smoke
from pipeline.tracking import Aliases, Version

FETCHES = 3  # attempts, as a store may fail once
FETCH_SECONDS = 1.0  # between two
CRASHES = 3  # of an engine's process under watch, after which it is rolled back
LONGEST_PAUSE = 60.0  # seconds between two looks while the registry does not answer
REFUSALS = (InputError, EngineLostError, TrialFailedError)  # what speaks against a version

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watch:
    """Over the model that took over last."""

    since: float  # time.monotonic()
    until: float


class Follower:
    """Of one registered model, for one server."""

    def __init__(self, root: Path, params: Params, service: Service, announce: Announce) -> None:
        """Raises InputError where the project has no held-out problems or another server follows here."""
        self._root, self._params, self._service = root, params, service
        self._options = params.machine.serving.follow
        self._model = champion_model(params)
        self._aliases = Aliases(params.tracking, root)
        self._ledger = Ledger.at(root, params.machine.ledger)
        self._questions = held_out(root, self._options.problems)
        self._shares: dict[str, float] = {}  # digest → share of right answers
        self._now: Version | None = None  # what answers
        self._declined: int | None = None  # a version that was refused here, while another server answers with it
        self._watch: Watch | None = None
        self._drops: set[asyncio.Task[None]] = set()

        def told(entry: Entry) -> None:
            service.metrics.promotions.labels(entry.event.kind).inc()
            announce(entry)

        self._outcomes = Outcomes(root, self._aliases, self._ledger, told)
        self._lock = _alone(root)

    async def run(self, ready: Callable[[], None]) -> None:
        """For ever. Raises InputError, or OSError of registry, store or disk, where no champion can begin."""
        await self._start()
        ready()
        pause = self._options.every_seconds
        while True:
            await asyncio.sleep(pause)
            try:
                await self._step()
                pause = self._options.every_seconds
            except (OSError, InputError) as error:  # of registry, ledger or disk: what answers goes on
                logger.error("follower: %s", error)
                pause = min(LONGEST_PAUSE, 2 * pause)
            except Exception:
                logger.exception("follower: a bug; what answers goes on")
                pause = min(LONGEST_PAUSE, 2 * pause)

    # ------------------------------------------------------------ the first champion

    async def _start(self) -> None:
        await asyncio.to_thread(self._outcomes.resume)
        entries = await asyncio.to_thread(self._ledger.entries)
        marks = champions(entries, self._model, tried=True)
        asked = await asyncio.to_thread(self._aliases.champion, self._model)
        if asked is None and not marks:
            raise InputError(
                f"{self._model}: no version is champion; `r1flow run` registers releases, `r1flow promote` makes one"
            )
        failed: list[str] = []
        # What answered last is known to; then what the alias asks for; then what answered before.
        wanted = [*marks[-1:], *([mark(asked)] if asked else []), *reversed(marks)]
        for number in dict.fromkeys(known.version for known in wanted):
            try:
                version = await asyncio.to_thread(self._aliases.version, self._model, number)
                self._service.answering.switch(await self._loaded(version))
                self._now = version
                break
            except REFUSALS as error:
                failed.append(f"version {number}: {error}")
                logger.error("follower: %s", failed[-1])
        else:
            raise InputError("\n".join([f"{self._model}: no version can be served", *failed]))
        before = marks[-1] if marks else None
        if before == mark(version):
            last = next(entry for entry in reversed(entries) if entry.event.tried and entry.event.after == before)
            if last.event.kind == "promoted":
                age = (datetime.now(UTC) - datetime.fromisoformat(last.when)).total_seconds()
                self._watch = self._watching(self._options.watch_seconds - age)
        else:
            kind: Kind = "rolled back" if mark(version) in marks else "promoted"
            who, why = (
                (_me(), failed[0] if failed else "the first champion") if failed or not marks else asked_by(version)
            )
            await self._settle(who, kind, before, mark(version), why)
        await self._tidy()

    # ------------------------------------------------------------ one look

    async def _step(self) -> None:
        await asyncio.to_thread(self._outcomes.resume)
        if reason := self._trouble():
            await self._roll_back(reason)
            return
        asked = await asyncio.to_thread(self._aliases.champion, self._model)
        assert self._now is not None
        if asked is None or asked.number != self._declined:
            self._declined = None
        if asked is not None and asked.number not in (self._now.number, self._declined):
            await self._attempt(asked)

    async def _attempt(self, asked: Version) -> None:
        """Let a version take over, or refuse it."""
        assert self._now is not None
        before, marks = mark(self._now), await self._marks()
        back = len(marks) > 1 and marks[-2] == mark(asked)
        known = set(self._service.answering.engines)
        try:
            async with asyncio.timeout(self._options.trial_seconds):
                engine = await self._loaded(asked)
                found = await self._examined(engine, back)
        except (*REFUSALS, TimeoutError) as error:
            await self._let_go(known)
            late = f"not done within {self._options.trial_seconds:g} s (trial_seconds)"
            await self._refuse(asked, str(error) or late)
            return
        except BaseException:
            await self._let_go(known)
            raise
        if not await self._still_asked(asked, known):
            return
        self._switch(asked, engine)
        self._watch = None if back else self._watching(self._options.watch_seconds)
        who, why = asked_by(asked)
        kind: Kind = "rolled back" if back else "promoted"
        await self._settle(who, kind, before, mark(asked), "; ".join([why, *found]), moves=False)
        await self._tidy()

    async def _still_asked(self, asked: Version, known: set[Engine]) -> bool:
        """Whether the alias names what was tried; else its engine is let go, and the next look sees to the alias."""
        still = None
        try:
            still = await asyncio.to_thread(self._aliases.champion, self._model)
        finally:
            wanted = still is not None and still.number == asked.number
            if not wanted:
                await self._let_go(known)
        return wanted

    async def _refuse(self, asked: Version, reason: str) -> None:
        assert self._now is not None
        logger.error("follower: %s version %s refused: %s", self._model, asked.number, reason)
        before = mark(self._now)
        if (await self._marks())[-1:] == [mark(asked)]:  # another server answers with it: the alias is not only ours
            self._declined = asked.number
            await self._settle(_me(), "refused", before, mark(asked), reason)
        elif (await self._marks(tried=False))[-1:] == [mark(asked)]:  # as a person has recorded
            await self._settle(_me(), "rolled back", mark(asked), before, reason)
        else:
            await self._settle(_me(), "refused", before, mark(asked), reason)

    async def _loaded(self, version: Version) -> Engine:
        """Fetched, verified, and in a process of its own."""
        tries = FETCHES
        while True:
            try:
                folder = await asyncio.to_thread(fetch, self._aliases, version, self._root)
                break
            except ConnectionError:
                tries -= 1
                if not tries:
                    raise
                await asyncio.sleep(FETCH_SECONDS)
        return await self._service.answering.load(folder)

    async def _examined(self, engine: Engine, back: bool) -> list[str]:
        """What it has shown, in words. Raises TrialFailedError."""
        options, slots = self._options, self._params.machine.serving.slots
        await smoke(engine, options.smoke, self._params.evaluation.sampling.max_new_tokens)
        if back:
            return []
        found = []
        if self._questions:
            old, new = await self._champions_share(), await self._share(engine, slots)
            compared = f"{new:.0%} of {len(self._questions)} held-out problems right, the champion {old:.0%}"
            if new < old - options.fall:
                raise TrialFailedError(f"{compared}: may lie at most {options.fall:.0%} below (fall)")
            found.append(compared)
        if options.shadow and options.shadow_seconds:
            bounds = Bounds(options.errors, options.latency_seconds, least=1)
            ended = await Shadow(self._service, engine, options.shadow).judge(options.shadow_seconds, bounds)
            for one in ended:
                self._service.metrics.shadow.labels("failed" if one.failed else "answered").observe(one.seconds)
            found.append(f"{len(ended)} live requests shadowed, {sum(one.failed for one in ended)} failed")
        return found

    async def _champions_share(self) -> float:
        """However often its process ends meanwhile: that is not the other version's fault."""
        while True:
            current = self._service.answering.current
            assert current is not None
            try:  # it has clients to answer: a quarter of its slots is enough
                return await self._share(current, max(1, self._params.machine.serving.slots // 4))
            except EngineLostError:
                await asyncio.sleep(1)

    async def _share(self, engine: Engine, width: int) -> float:
        assert engine.facts is not None
        if (known := self._shares.get(engine.facts.digest)) is not None:
            return known
        share = await right_share(engine, self._questions, self._params.evaluation.sampling, width)
        return self._shares.setdefault(engine.facts.digest, share)

    # ------------------------------------------------------------ after the switch

    def _trouble(self) -> str | None:
        """Why the model that took over last has to go again."""
        engine, watch = self._service.answering.current, self._watch
        if watch is None or engine is None:
            return None
        options = self._options
        if engine.restarts >= CRASHES:
            return f"its process ended {engine.restarts} times"
        bounds = Bounds(options.errors, options.latency_seconds, options.requests)
        if reason := engine.tally.trouble(watch.since, bounds):
            return reason
        if time.monotonic() > watch.until:
            self._watch = None
        return None

    async def _roll_back(self, reason: str) -> None:
        """To the champion before; where it cannot be loaded, what answers goes on."""
        assert self._now is not None
        bad, marks = mark(self._now), await self._marks()
        earlier = [known for known in marks if known != bad]
        if not earlier:
            logger.error("follower: %s version %s: %s; no champion before it", self._model, bad.version, reason)
            self._watch = None
            return
        logger.error("follower: %s version %s rolled back: %s", self._model, bad.version, reason)
        try:
            version = await asyncio.to_thread(self._aliases.version, self._model, earlier[-1].version)
            engine = await self._loaded(version)
        except REFUSALS as error:  # nor will it load another time
            logger.error("follower: version %s cannot be loaded: %s", earlier[-1].version, error)
            self._watch = None
            return
        self._switch(version, engine)
        self._watch = None
        await self._settle(_me(), "rolled back", bad, mark(version), reason)
        await self._tidy()

    def _switch(self, version: Version, engine: Engine) -> None:
        answering = self._service.answering
        old, self._now = answering.switch(engine), version
        if old is not None:
            self._drop(old)

    def _drop(self, engine: Engine) -> None:
        task = asyncio.create_task(self._service.answering.drop(engine))
        self._drops.add(task)
        task.add_done_callback(self._drops.discard)

    async def _let_go(self, known: set[Engine]) -> None:
        """Of the engine that was loaded for a trial."""
        answering = self._service.answering
        for engine in [engine for engine in answering.engines if engine not in known]:
            await answering.drop(engine)

    def _watching(self, seconds: float) -> Watch | None:
        now = time.monotonic()
        return Watch(now, now + seconds) if seconds > 0 else None

    async def _marks(self, *, tried: bool = True) -> list[Mark]:
        return champions(await asyncio.to_thread(self._ledger.entries), self._model, tried=tried)

    async def _settle(
        self, who: str, kind: Kind, before: Mark | None, after: Mark, why: str, *, moves: bool = True
    ) -> None:
        event = Event(uuid.uuid4().hex, who, kind, self._model, before, after, why, tried=True)
        await asyncio.to_thread(self._outcomes.settle, event, moves=moves)

    async def _tidy(self) -> None:
        """Keep what answers and what would be rolled back to."""
        kept = {known.digest for known in (await self._marks())[-2:]}
        if self._now is not None:
            kept.add(self._now.digest)
        await asyncio.to_thread(keep_only, self._root, kept)


def _me() -> str:
    return f"r1flow serve on {socket.gethostname()}"


def _alone(root: Path) -> IO[str]:
    """The lock that keeps a second follower off; held as long as the file is open."""
    folder = serving_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "follower.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"{root}: another server follows the champion here; serve a folder with --model") from None
    return file
