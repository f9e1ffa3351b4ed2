"""The results of a study as a person reads them: one row for each arm, on the terminal and in results.md."""

from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.figures import duration, money, percent, points, scaled

UNKNOWN = "not known"
ON_PAGE = ("p", "seeds", "tokens of an answer", "tokens", "operations")  # columns that the terminal has no room for


def rows(results: dict[str, Any]) -> list[dict[str, str]]:
    """Column → text, an arm a row, in the study's order. Costs are means over the seeds."""
    return [_row(arm, found, results["control"]) for arm, found in results["arms"].items()]


def markdown(results: dict[str, Any]) -> str:
    """Question, what was asked, the table, and what its columns mean."""
    table = rows(results)
    lines = [
        f"# {results['study']}",
        "",
        results["question"],
        "",
        f"`r1flow study {results['study']}`; seeds {', '.join(map(str, results['seeds']))}; {results['problems']} "
        f"held-out problems of each × {results['samples']} samples, temperature "
        f"{results['sampling']['temperature']:g}, top-p {results['sampling']['top_p']:g}.",
        "",
        "| " + " | ".join(table[0]) + " |",
        "|" + "---|" * len(table[0]),
        *("| " + " | ".join(row.values()) + " |" for row in table),
        "",
        "In brackets 95 % intervals, by bootstrap over the problems of all seeds. p: exact sign-flip test, two-sided. "
        "Time, tokens and money: means over the seeds, of the stage that made the model and, behind the slash, of all "
        "stages that lead to it.",
        "",
    ]
    return "\n".join(lines)


def terminal(results: dict[str, Any]) -> Table:
    """The columns that fit; results.md has all."""
    table = Table(title=results["question"])
    found = [{column: row[column] for column in row if column not in ON_PAGE} for row in rows(results)]
    for column in found[0]:
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(*(Text(text.replace(" [", "\n[").replace(" / ", "\n")) for text in row.values()))
    return table


def _row(arm: str, found: dict[str, Any], control: str) -> dict[str, str]:
    pooled, seeds, spent = found["pooled"], found["seeds"].values(), list(found["spent"].values())
    is_control = arm == control
    return {
        "arm": arm,
        "pass@1": _interval(pooled, "pass_at_1"),
        f"over {control}": "" if is_control else _interval(pooled, "over_control", sign="+"),
        "p": "" if is_control else f"{pooled['p_value']:.2g}",
        "seeds": ", ".join(percent(one["pass_at_1"]) for one in seeds),
        "tokens of an answer": f"{pooled['tokens']:.1f}",
        "parameters, activated of all": f"{scaled(found['activated'])} of {scaled(found['total'])}",
        "time": _both(spent, lambda one: duration(one["seconds"])),
        "tokens": _both(spent, lambda one: scaled(one["trained_tokens"] + one["generated_tokens"])),
        "operations": _both(spent, lambda one: scaled(one["flops"])),
        "cost": _both(spent, lambda one: money(one["money"], spent[0]["currency"])),
    }


def _interval(figures: dict[str, float], name: str, *, sign: str = "") -> str:
    """In points of a hundred."""
    mean, low, high = (points(figures[key], sign) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{mean} [{low}, {high}]"


def _both(spent: list[dict[str, Any]], text: Callable[[dict[str, float]], str]) -> str:
    return " / ".join(_mean([one[part] for one in spent], text) for part in ("own", "way"))


def _mean(parts: list[dict[str, float] | None], text: Callable[[dict[str, float]], str]) -> str:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return UNKNOWN
    return text({name: sum(part[name] for part in known) / len(known) for name in known[0]})
