"""The models of a project beside each other: how right they are, how large, and what it took to make them.

Which models there are, evaluation says: its figures are named `MODEL.FIGURE`, those of one task `MODEL.TASK.FIGURE`,
the bounds of a 95 % interval `…_low` and `…_high`, and a comparison of two models `MODEL.over_OTHER`.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.report.project import Stage, parents

FIGURE = "pass_at_1"
OVER = "over_"  # `MODEL.over_OTHER`: what lies between two models


@dataclass(frozen=True)
class Model:
    """One evaluated model. Money and seconds are of its own stage and, `…_in_all`, of all that it stands on, too."""

    name: str
    key: str  # of its pass@1 among evaluation's figures
    pass_at_1: float
    low: float | None
    high: float | None
    tasks: dict[str, str]  # task → key of its pass@1
    others: dict[str, str]  # what else is known of it → key
    against: dict[str, str]  # other model → key of the difference in pass@1; `…_p` is that of the test's p-value
    parameters: float | None
    activated: float | None
    parent: str | None
    gained: float | None  # points of pass@1 over the parent
    seconds: float | None
    money: float | None
    money_in_all: float | None

    @property
    def money_per_point(self) -> float | None:
        """None where nothing was gained."""
        return self.money / self.gained if self.money is not None and self.gained and self.gained > 0 else None


def evaluated(stages: list[Stage]) -> list[Model]:
    """The models in the order of evaluation's figures."""
    figures = next((stage.metrics for stage in stages if stage.name == "evaluation"), {})
    keys = [key for key in figures if key.endswith(f".{FIGURE}")]
    of_model = {key.removesuffix(f".{FIGURE}"): key for key in keys if key.count(".") == 1}
    by_model = {stage.model: stage for stage in stages}
    came_from = parents(stages, set(of_model))
    return [_model(name, key, figures, by_model, came_from.get(name)) for name, key in of_model.items()]


def final(models: list[Model]) -> Model | None:
    """The recipe's own last model: the first one that is no student."""
    return next((model for model in models if "/" not in model.name), models[0] if models else None)


def _model(name: str, key: str, figures: dict[str, float], by_model: dict[str, Stage], parent: str | None) -> Model:
    stage = by_model.get(name)
    own = stage.metrics if stage else {}
    cost = stage.cost if stage else None
    tasks = {
        other.removeprefix(f"{name}.").removesuffix(f".{FIGURE}"): other
        for other in figures
        if other.startswith(f"{name}.") and other.endswith(f".{FIGURE}") and other != key
    }
    own_figures = {
        other.removeprefix(f"{name}."): other
        for other in figures
        if other.startswith(f"{name}.") and other.count(".") == 1 and not other.endswith(("_low", "_high"))
    }
    behind = [by_model[one].cost for one in _ancestors(name, by_model)] if stage else []
    return Model(
        name=name,
        key=key,
        pass_at_1=figures[key],
        low=figures.get(f"{key}_low"),
        high=figures.get(f"{key}_high"),
        tasks=tasks,
        others={
            short: other
            for short, other in own_figures.items()
            if short not in (FIGURE, "parameters", "activated_parameters") and OVER not in short
        },
        against={
            short.removeprefix(OVER): other
            for short, other in own_figures.items()
            if short.startswith(OVER) and f"{other}_p" in figures
        },
        parameters=own.get("parameters", figures.get(f"{name}.parameters")),
        activated=own.get("activated_parameters", figures.get(f"{name}.activated_parameters")),
        parent=parent,
        gained=None if parent is None else 100 * (figures[key] - figures[f"{parent}.{FIGURE}"]),
        seconds=cost.seconds if cost else None,
        money=cost.money if cost else None,
        money_in_all=sum(one.money for one in behind if one) if behind and all(behind) else None,
    )


def _ancestors(name: str, by_model: dict[str, Stage]) -> list[str]:
    """A model's stage and all that lead to it, by their model names."""
    names = {stage.name: model for model, stage in by_model.items()}
    found, ahead = [name], list(by_model[name].needs)
    while ahead:
        model = names[ahead.pop()]
        if model not in found:
            found.append(model)
            ahead += by_model[model].needs
    return found


def funnel(stages: list[Stage]) -> dict[str, Any] | None:
    """What came into curation, what was dropped and why, and what was kept; None before curation has run."""
    figures = next((stage.metrics for stage in stages if stage.name == "curation"), {})
    groups = {
        group: {name.removeprefix(f"{group}/"): figures[name] for name in figures if name.startswith(f"{group}/")}
        for group in ("read", "quarantined", "train", "evaluation")
    }
    if not groups["read"]:
        return None
    return {**groups, "problems": figures["problems"], "pairs": figures["pairs"], "traces": figures["traces"]}
