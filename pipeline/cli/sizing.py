"""What a model needs: measured on this machine, or computed for one that is not here."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.common import Json, project


def plan(
    again: Annotated[bool, typer.Option("--again", help="Measure also what was measured before.")] = False,
) -> None:
    """Measure every release on this machine; choose the cheapest that meets deployment.target. Exit status 3: none."""
    root = project()
    from rich.console import Console

    from pipeline.planning.plan import make_plan
    from pipeline.planning.table import chosen_line, plan_table

    made = make_plan(root, again=again)
    Console().print(plan_table(made))
    print(chosen_line(made))


def plan_memory(
    params: Annotated[Path, typer.Option(metavar="FILE", help="A params file.")] = Path("params.yaml"),
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="[STUDENT=]FILE", help="config.json of a checkpoint that is not here, or a student's."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of the longest prompt.")] = 512,
    device_memory: Annotated[float | None, typer.Option(min=0, metavar="GIB", help="Mark what fits.")] = None,
    as_json: Json = False,
) -> None:
    """Compute the memory of one rank in each training stage. Exit status 3: a stage exceeds --device-memory."""
    from pipeline.errors import GateFailedError
    from pipeline.memory.plan import plan_memory as plan_stages
    from pipeline.memory.table import fits, memory_table
    from pipeline.params import load_params

    named = [one.rpartition("=") for one in config or []]
    configs = {name or "base": Path(file) for name, _, file in named}
    plans = plan_stages(load_params(params), configs, prompt_tokens)
    if as_json:
        print(json.dumps([plan.to_json() for plan in plans]))
    else:
        from rich.console import Console

        width = max(160, Console().width)  # a narrower terminal would break figures instead of lines
        Console(width=width).print(memory_table(plans, device_memory))
    if device_memory is not None and (over := [plan.stage for plan in plans if not fits(plan, device_memory)]):
        raise GateFailedError(f"more than {device_memory:g} GiB: {', '.join(over)}")
