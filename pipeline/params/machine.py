"""Where things run, what that costs, and how much it may cost. Not part of any stage's identity."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.section import Count, NonNegative, Positive, Section
from pipeline.params.serving import Serving


class Prices(Section):
    """What an hour of a device costs. A CPU counts as one device, whatever its cores.

    Looked up by the device's own name ("NVIDIA H100 80GB HBM3"), then by its kind ("cpu", "cuda"), then "default".
    The defaults are rough list prices of rented machines: put yours in.
    """

    currency: Annotated[str, Field(min_length=1, max_length=8)] = "USD"
    device_hour: dict[str, NonNegative] = {"cpu": 0.10, "default": 3.00}

    @model_validator(mode="after")
    def _every_device_has_one(self) -> "Prices":
        if "default" not in self.device_hour:
            raise ValueError(
                f"device_hour: must have an entry 'default' beside {', '.join(self.device_hour) or 'none'}"
            )
        return self

    def of(self, name: str, kind: str) -> float:
        """Of an hour of one device."""
        return next(self.device_hour[key] for key in (name, kind, "default") if key in self.device_hour)


class Budget(Section):
    """What the stages of a project may cost together (pipeline/cost.py says what counts). At least one limit."""

    hours: Positive | None = None  # of devices
    money: Positive | None = None  # in the currency of `prices`
    tokens: Count | None = None  # trained and generated

    @model_validator(mode="after")
    def _something_is_limited(self) -> "Budget":
        if not any(self.model_dump().values()):
            raise ValueError("must limit at least one of hours, money, tokens; null for no budget")
        return self


class Machine(Section):
    """Where things run."""

    threads: Count | None = None  # None: one per core, or this stage's part of them where others run beside it
    device: Literal["auto", "cpu"] = "auto"  # auto: a GPU where there is one; for each rank its own
    parallel: Count = 1  # stages at a time, of those that do not need each other
    stage_timeout_hours: Positive = 24.0
    retries: Annotated[int, Field(ge=0)] = 1
    rank_timeout_minutes: Positive = 10.0  # that ranks wait for one that is silent; verification must fit in
    prices: Prices = Prices()
    budget: Budget | None = None
    # Of copies of checkpoints, releases and the ledger: s3://bucket/prefix or a folder, for all machines the same
    store: Annotated[str, Field(min_length=1)] | None = None
    serving: Serving = Serving()

    @property
    def ledger(self) -> str:
        """Where the record of promotions is: s3://… or a folder in the project."""
        return self.serving.follow.ledger or (f"{self.store.rstrip('/')}/ledger" if self.store else "runs/ledger")
