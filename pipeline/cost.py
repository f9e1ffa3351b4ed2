"""What a stage costs: tokens, operations, seconds, memory, energy, money; and the budget that stops it in time.

The account of a piece of work is runs/<stage>/<key>/cost.json. It is no output: the same work costs something else on
another machine. Two kinds of figures lie in it, and an attempt that goes on from another one's checkpoint treats them
differently:

- What was computed (tokens, operations) belongs to the result. It is kept with each checkpoint, and an attempt starts
  from what was kept with the one that it goes on from. So it ends at the same counts as an undisturbed run.
- What was paid (seconds, money, energy) adds up over all attempts at this work, what had to be done twice included.
  The file is written at each checkpoint and when an attempt ends in order, by an error or a signal too; of a process
  that was killed outright, what came after its last checkpoint is not known.

What is spent on a project is the sum over its stages of the accounts of their last attempts: work under other params,
and so under other keys, does not count. The budget (`machine.budget`) limits that sum. It is looked at before a stage
starts and after each checkpoint, and before an attempt's first one after a few steps already; a stage stops where the
next checkpoint, at the rate of this attempt so far, would cross it. What a stage without checkpoints adds is noticed by
the next stage.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import BudgetExceededError, InputError
from pipeline.files import write_json
from pipeline.gauges import Device, Energy, device, peak_device_memory, peak_memory
from pipeline.job import Work
from pipeline.params import Distributed, Machine
from pipeline.state import read_state

KEPT = 4  # checkpoints whose work is remembered: a loop goes on from one of the newest two
NOTHING = Work()
ALONE = Distributed()
FIRST_STEPS = 3  # of an attempt, from which its rate is taken before there is a checkpoint; the very first is slow
SAMPLE_SECONDS = 5.0  # between two looks at the energy counters, which start over now and then


@dataclass(frozen=True)
class Cost:
    """The account of one piece of work."""

    attempts: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    money: float = 0.0
    currency: str = ""
    device: str = ""  # of the last attempt
    devices: int = 0
    energy: dict[str, float] | None = None  # source → joules, of the sources that all attempts could read
    peak_memory: int = 0  # bytes, the largest of an attempt
    peak_device_memory: int | None = None  # bytes; None where no GPU was used
    work: Work = NOTHING
    kept: dict[str, dict[str, Work]] = field(default_factory=dict)  # loop → step of its checkpoint → work up to there

    @property
    def joules(self) -> float | None:
        """Over all readable sources; None where there was none."""
        return sum(self.energy.values()) if self.energy else None

    def figures(self) -> dict[str, float]:
        """As named numbers; what could not be read is not among them."""
        named = {
            "attempts": self.attempts,
            "seconds": self.seconds,
            "device_seconds": self.device_seconds,
            "money": self.money,
            "trained_tokens": self.work.trained_tokens,
            "generated_tokens": self.work.generated_tokens,
            "flops": self.work.flops,
            "peak_memory_bytes": self.peak_memory,
            "peak_device_memory_bytes": self.peak_device_memory,
            "joules": self.joules,
        }
        return {name: value for name, value in named.items() if value is not None}


class Part:
    """What one loop of an attempt computes; a `pipeline.job.Meter`."""

    def __init__(self, account: "Account", name: str, kept: dict[str, Work]) -> None:
        self._account, self._name = account, name
        self.kept = kept
        self.work = NOTHING
        self._mark: tuple[int, Cost] | None = None  # where the loop began, and what had been spent by then
        self._steps = self._ahead = 0  # of this attempt's loop: done, and from its beginning to its first checkpoint

    def part(self, name: str) -> "Part":
        return self._account.part(f"{self._name}/{name}" if self._name else name)

    def resume(self, step: int, ahead: int) -> None:
        """The loop goes on from a checkpoint: what was kept with it is done."""
        assert self._mark is None, f"part {self._name!r}: each loop has a part of its own"
        known = {int(kept): work for kept, work in self.kept.items() if int(kept) <= step}
        self.work = known[max(known)] if known else NOTHING
        self._mark = (step, self._account.cost())
        self._steps, self._ahead = 0, ahead

    def count(self, work: Work) -> None:
        self.work += work
        self._steps += 1
        self._account.look()
        if self._ahead > self._steps >= FIRST_STEPS:
            self._hold_budget(self._steps, self._ahead - self._steps, "nothing is kept of them yet")

    def keep(self, step: int, steps: int) -> None:
        kept = {**self.kept, str(step): self.work}
        names = sorted((name for name in kept if int(name) <= step), key=int)[-KEPT:]
        self.kept = {name: kept[name] for name in names}
        self._account.write()
        assert self._mark is not None, "a loop says where it goes on from before it keeps anything"
        began, interval = self._mark[0], step - max([int(name) for name in names if int(name) < step], default=0)
        self._ahead = 0
        self._hold_budget(step - began, min(interval, steps - step), f"step {step} of {steps} is kept")

    def _hold_budget(self, done: int, ahead: int, kept: str) -> None:
        """Stop where `ahead` more steps, at the rate of the `done` ones of this attempt, would be beyond the budget."""
        if ahead > 0 and done > 0:
            assert self._mark is not None
            self._account.hold_budget(self._mark[1], done, ahead, kept)


class Account:
    """Keeps the cost of one attempt at a stage, from its making to `close`; a `pipeline.job.Meter`."""

    def __init__(self, root: Path, stage: str, key: str, machine: Machine, ranks: Distributed = ALONE) -> None:
        """`ranks`: the processes of this attempt, of which this one is the first; each has the like device."""
        self._root, self._stage, self._machine, self._ranks = root, stage, machine, ranks
        self._path = account_file(root, stage, key)
        self._before = _read(self._path) or Cost()
        self._parts: dict[str, Part] = {}
        self._started = self._sampled = time.monotonic()
        self._energy = Energy()

    def part(self, name: str) -> Part:
        if name not in self._parts:
            self._parts[name] = Part(self, name, self._before.kept.get(name, {}))
        return self._parts[name]

    def resume(self, step: int, ahead: int) -> None:
        self.part("").resume(step, ahead)

    def count(self, work: Work) -> None:
        self.part("").count(work)

    def keep(self, step: int, steps: int) -> None:
        self.part("").keep(step, steps)

    def look(self) -> None:
        """At the energy counters, now and then."""
        if time.monotonic() - self._sampled >= SAMPLE_SECONDS:
            self._energy.sample()
            self._sampled = time.monotonic()

    def close(self) -> Cost:
        """Write what the attempt has cost, and return what the work has cost with it."""
        self._energy.sample()
        return self.write()

    def require_budget(self) -> None:
        """Raises BudgetExceededError where nothing is left before the stage begins."""
        spent = self._spent()
        for name, limit in self._limits():
            if spent[name] >= limit:
                raise BudgetExceededError(
                    f"machine.budget.{name} = {limit:g}: the stages so far have spent {_amount(spent[name])}, so "
                    f"{self._stage} was not started; raise the budget and run again"
                )

    def cost(self) -> Cost:
        """Of the work up to now."""
        before, used = self._before, self._devices()
        seconds = time.monotonic() - self._started
        hours = seconds * used.count / 3600
        return Cost(
            attempts=before.attempts + 1,
            seconds=round(before.seconds + seconds, 3),
            device_seconds=round(before.device_seconds + seconds * used.count, 3),
            money=before.money + hours * self._price(used),
            currency=self._machine.prices.currency,
            device=used.name,
            devices=used.count,
            energy=_added(before, self._energy.joules),
            peak_memory=max(before.peak_memory, peak_memory()),
            peak_device_memory=max(filter(None, (before.peak_device_memory, peak_device_memory())), default=None),
            work=sum((part.work for part in self._parts.values()), NOTHING),
            kept=before.kept | {name: part.kept for name, part in self._parts.items() if part.kept},
        )

    def _devices(self) -> Device:
        """Of all ranks. Those of one node share its CPU."""
        used = device()
        return replace(used, count=used.count * (self._ranks.nodes if used.kind == "cpu" else self._ranks.world))

    def _price(self, used: Device) -> float:
        return self._machine.prices.of(used.name, used.kind)

    def write(self) -> Cost:
        """As it stands."""
        cost = self.cost()
        write_json(self._path, asdict(cost))
        return cost

    def hold_budget(self, first: Cost, done: int, ahead: int, kept: str) -> None:
        """Stop where `ahead` more steps would be too much at the rate of the `done` ones that followed on `first`."""
        if self._machine.budget is None:
            return
        spent, own, before = self._spent(), _counted(self.cost()), _counted(first)
        for name, limit in self._limits():
            needed = (own[name] - before[name]) / done * ahead
            if spent[name] + needed > limit:
                raise BudgetExceededError(
                    f"machine.budget.{name} = {limit:g}: spent {_amount(spent[name])}, of which {self._stage} "
                    f"{_amount(own[name])}; the next {ahead} steps, up to a checkpoint, would take about "
                    f"{_amount(needed)} more. Stopped after {done} steps ({kept}); with a larger budget the next run "
                    f"goes on from the last checkpoint"
                )

    def _limits(self) -> Iterator[tuple[str, float]]:
        if self._machine.budget is not None:
            for name, limit in self._machine.budget.model_dump().items():
                if limit is not None:
                    yield name, limit

    def _spent(self) -> dict[str, float]:
        """On the project: the other stages' accounts and this one as it stands."""
        others = [cost for stage, cost in costs(self._root).items() if stage != self._stage]
        counted = [_counted(cost) for cost in (*others, self.cost())]
        return {name: sum(each[name] for each in counted) for name in counted[0]}


def read_cost(root: Path, stage: str) -> Cost | None:
    """What the work of a stage's last attempt has cost, as far as it is written; None where nothing is.

    Raises InputError, as all readers here do, for a file that is no account of this version.
    """
    state = read_state(root, stage)
    return None if state is None or not state.key else _read(account_file(root, stage, state.key))


def account(root: Path, stage: str, key: str) -> Cost | None:
    """What the work of this key has cost, whatever the stage did afterwards; None where it did not run here."""
    return _read(account_file(root, stage, key))


def costs(root: Path) -> dict[str, Cost]:
    """The accounts of all stages that have a folder, by name: also of one that dvc.yaml has lost."""
    stages = sorted(path.parent.name for path in (root / "runs").glob("*/state.json"))
    found = {stage: read_cost(root, stage) for stage in stages}
    return {stage: cost for stage, cost in found.items() if cost is not None}


def account_file(root: Path, stage: str, key: str) -> Path:
    """Where the account of a piece of work is kept."""
    return root / "runs" / stage / key / "cost.json"


def _read(path: Path) -> Cost | None:
    if not path.is_file():
        return None
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kept = {part: {step: Work(**work) for step, work in steps.items()} for part, steps in document["kept"].items()}
        return replace(Cost(**document), work=Work(**document["work"]), kept=kept)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: {type(error).__name__}: {error}: must be an account as this version writes it; "
            "delete it to go on, and what it counted is forgotten"
        ) from None


def _counted(cost: Cost) -> dict[str, float]:
    """By the names of the budget's limits."""
    return {"hours": cost.device_seconds / 3600, "money": cost.money, "tokens": cost.work.tokens}


def _added(before: Cost, joules: dict[str, float]) -> dict[str, float]:
    """The sum of the sources that every attempt could read: part of a sum would pass for all of it."""
    if before.energy is None:
        return joules
    return {source: before.energy[source] + joules[source] for source in joules if source in before.energy}


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
