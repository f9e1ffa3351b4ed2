"""From facts to the page: tables are written here, charts are drawn by page.js from the JSON that goes along.

Texts of models and data reach the page as text alone: jinja2 escapes what stands in tables, the JSON holds no `<`, and
the script sets text nodes. A content security policy lets nothing run but that script, and nothing be fetched.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from pipeline import figures
from pipeline.cost import Cost
from pipeline.files import atomic_file
from pipeline.job import PARAMS_FILE
from pipeline.params import load_params
from pipeline.planning.record import read_plan
from pipeline.planning.table import rows
from pipeline.report.curves import FIRST, read_curves
from pipeline.report.experts import expert_map
from pipeline.report.models import Model, evaluated, final, funnel
from pipeline.report.project import Stage, commit, lineage, read_project
from pipeline.report.samples import read_samples
from pipeline.report.studies import pictures, read_studies

HERE = Path(__file__).parent
NOT_READABLE = "not readable"


def report_path(root: Path) -> Path:
    return root / "runs" / "report.html"


def write_report(root: Path) -> Path:
    """Write the page of the project at `root` and return its path. Raises InputError where params are wrong."""
    params = load_params(root / PARAMS_FILE)
    stages = read_project(root)
    models = evaluated(stages)
    last, plan, studies = final(models), read_plan(root), read_studies(root)
    facts: dict[str, Any] = {
        "metrics": {stage.name: stage.metrics for stage in stages if stage.metrics},
        "stages": [_stage(stage) for stage in stages],
        "models": [asdict(model) | {"money_per_point": model.money_per_point} for model in models],
        "currency": params.machine.prices.currency,
        "curves": read_curves(params.tracking, root, stages),
        "first": list(FIRST),
        "funnel": funnel(stages),
        "final": last.name if last else None,
        "experts": expert_map(root, last.name) if last else None,
        "samples": read_samples(root),
        "plan": [] if plan is None else _points(plan),
        "studies": pictures(studies),
    }
    page = render(
        facts,
        title=root.name,
        written=datetime.now(UTC),
        commit=commit(root),
        models=models,
        final=last,
        stages=stages,
        lineage=lineage(root, stages),
        plan=plan,
        plan_rows=[] if plan is None else rows(plan),
        studies=studies,
        params=(root / PARAMS_FILE).read_text(encoding="utf-8"),
    )
    with atomic_file(report_path(root)) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return report_path(root)


def render(facts: dict[str, Any], *, models: Sequence[Model], stages: Sequence[Stage], **given: Any) -> str:
    """The page: the template with everything that is not drawn, and `facts` as JSON for what is."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "duration": figures.duration, "money": figures.money, "number": _number, "percent": figures.percent,
        "scaled": figures.scaled,
    }  # fmt: skip
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.jinja").render(
        data=_script_json(facts),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        figures_of=facts["metrics"],
        funnel=facts["funnel"],
        experts=facts["experts"],
        samples=facts["samples"],
        curves=facts["curves"],
        currency=facts["currency"],
        models=models,
        stages=stages,
        costs=[(stage, cost_cells(stage.cost)) for stage in stages if stage.cost],
        total=_total(stages),
        others=list(dict.fromkeys(name for model in models for name in model.others)),
        tasks=sorted({task for model in models for task in model.tasks}),
        **given,
    )


def cost_cells(cost: Cost) -> dict[str, str]:
    """A row of the table of costs. What could not be read says so."""
    used = cost.work.flops / cost.seconds if cost.seconds else 0
    return {
        "time": figures.duration(cost.seconds),
        "money": figures.money(cost.money, cost.currency),
        "trained tokens": figures.scaled(cost.work.trained_tokens),
        "generated tokens": figures.scaled(cost.work.generated_tokens),
        "FLOP": figures.scaled(cost.work.flops),
        "FLOP/s": figures.scaled(used),
        "peak memory": figures.scaled(cost.peak_memory, "B", 1024),
        "peak GPU memory": "no GPU"
        if cost.peak_device_memory is None
        else figures.scaled(cost.peak_device_memory, "B", 1024),
        "energy": NOT_READABLE if cost.joules is None else figures.scaled(cost.joules, "J"),
        "device": f"{cost.devices} × {cost.device}",
        "attempts": str(cost.attempts),
    }


def _total(stages: Sequence[Stage]) -> dict[str, Any] | None:
    """Sums over the stages that have an account."""
    known = [stage.cost for stage in stages if stage.cost]
    if not known:
        return None
    return {
        "seconds": sum(cost.seconds for cost in known),
        "money": figures.money(sum(cost.money for cost in known), known[-1].currency),
        "tokens": sum(cost.work.tokens for cost in known),
        "flops": sum(cost.work.flops for cost in known),
    }


def _stage(stage: Stage) -> dict[str, Any]:
    """What the picture of the recipe shows of a stage."""
    seconds = stage.cost.seconds if stage.cost else stage.state.seconds if stage.state else None
    return {
        "name": stage.name,
        "needs": stage.needs,
        "depth": stage.depth,
        "ending": stage.ending,
        "time": "" if seconds is None else figures.duration(seconds),
        "money": "" if stage.cost is None else figures.money(stage.cost.money, stage.cost.currency),
        "error": stage.state.error if stage.state else "",
    }


def _points(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the pictures of the plan show of each candidate."""
    return [
        {
            "name": one["release"] if one["way"] == "memory" else f"{one['release']}, {one['way']}",
            "pass_at_1": one["pass_at_1"]["mean"],
            "low": one["pass_at_1"]["low"],
            "high": one["pass_at_1"]["high"],
            "memory": one["memory"],
            "cost": one["cost"],
        }
        for one in plan["candidates"]
    ]


def _number(value: Any) -> str:
    return figures.number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _script_json(facts: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(_finite(facts), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _finite(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_finite(entry) for entry in value]
        case _:
            return value
