"""Which machines run which stages. Not part of any stage's identity: where a stage runs does not change its result."""

from typing import Annotated

from pydantic import Field

from pipeline.params.section import Name, Section

CPU = "cpu"
MEMBER = "@"  # as in pipeline.job, which is above this package


class Workers(Section):
    """The stages travel between machines by git and by a DVC remote, and each one runs in a pool of workers.

    A pool is a work pool of Prefect's, of the same name. The machines of every pool but `cpu` have GPUs, of which a
    stage takes one.
    """

    remote: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None  # a DVC remote of the project; None: its default
    default: Name = CPU  # the pool of every stage that `pools` does not name
    pools: dict[str, Name] = {}  # stage, one member of a group (`distillation@small`) or all (`distillation`) → pool

    def pool(self, stage: str) -> str:
        """Where a stage runs."""
        group = stage.partition(MEMBER)[0]
        return self.pools.get(stage, self.pools.get(group, self.default))
