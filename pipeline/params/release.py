"""Options of releases: what must agree before one exists, and what becomes of it in the registry."""

from typing import Literal

from pipeline.params.section import Count, Name, Positive, Section
from pipeline.params.sizing import Plan, Sizing, Target, Variant


class Parity(Section):
    """How closely the trained weights, the exported files, transformers and the engine must agree."""

    problems: Count = 64  # held-out ones that every release answers again, as often as in the evaluation
    # How far 99 of 100 tokens' log-probabilities may lie apart, in nats. The default recipe's float32 needs 1e-5;
    # bfloat16 needs more, as another order of sums moves it further.
    log_probability: Positive = 1e-3


class Deployment(Section):
    parity: Parity
    sizing: Sizing = Sizing()
    variants: dict[Name, Variant] = {}  # name of the release → how it is made
    target: Target = Target()
    plan: Plan = Plan()
    registry: Name = "r1flow"  # of a release's model in MLflow: REGISTRY-RELEASE, "r1flow-general_rl"
    # Which new version becomes the champion by itself: the first one of its model, none, every one. A person can
    # always move the alias.
    promote: Literal["first", "never", "always"] = "first"
