"""What the deployments on a Prefect server do by themselves (flows/, docs/operate.md). No stage depends on it."""

from typing import Literal

from pipeline.params.section import Count, Positive, Section, Share


class Approval(Section):
    """Who makes a new candidate the champion.

    `run`: a run of the deployment `follow` waits for a person's word, for so many hours; afterwards the version stays a
    candidate. `alias`: nothing waits; whoever moves the alias `champion` in the registry decides.
    """

    by: Literal["run", "alias"] = "alias"
    hours: Positive = 24.0


class Operation(Section):
    # Accepted problems that the last recipe has not had, for `curate` to start the next one; None: it never does
    new_problems: Count | None = 1000
    approval: Approval = Approval()
    # How far the champion's pass@1 may lie below what it was at its registration, in the nightly evaluation
    fall: Share = 0.05
