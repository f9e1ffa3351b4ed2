"""Run the recipe, and look at how it fared."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.common import project
from pipeline.errors import InputError


def run(
    params: Annotated[Path | None, typer.Option(metavar="FILE", help="Make FILE the project's params.yaml.")] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after STAGE and what it needs.")] = None,
) -> None:
    """Bring every stage up to date; what has not changed is not done again."""
    from flows.local import environment
    from flows.supervise import GRACE
    from flows.supervise import run as run_supervised
    from pipeline.job import PARAMS_FILE
    from pipeline.model.planned import require_models
    from pipeline.params import load_params
    from pipeline.process import exit_on_signals
    from pipeline.workspace import adopt_params

    root = project()
    if params is not None and (told := adopt_params(root, params)):
        print(told)
    require_models(load_params(root / PARAMS_FILE))
    exit_on_signals()
    flow = [sys.executable, "-m", "flows.recipe", *(["--until", until] if until else [])]
    # The flow, when it is stopped, first gives its stage the usual grace.
    raise typer.Exit(run_supervised(flow, cwd=root, env=environment(root), grace=3 * GRACE))


def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a file infra/profiles/studies/NAME.yaml.")],
) -> None:
    """Compare variants of the recipe: run what is missing of each, then put the same held-out problems to all."""
    root = project()
    from flows.study import run_study
    from pipeline.process import exit_on_signals
    from pipeline.tracking import recorder

    exit_on_signals()
    with recorder():  # for the stages of all variants
        status = run_study(root, name)
    raise typer.Exit(status)


def status() -> None:
    """Show each stage: fresh or stale, its last attempt and figures."""
    from rich.console import Console

    from flows.report import status_table
    from flows.status import freshness
    from pipeline.state import read_state

    root = project()
    fresh = freshness(root)
    console = Console()
    console.print(status_table(root, fresh, {stage: read_state(root, stage) for stage in fresh}, console.width))


def report() -> None:
    """Write runs/report.html: recipe, models, curves, samples, costs and lineage on one page; print where it is."""
    from pipeline.report.page import write_report

    print(write_report(project()))


def models() -> None:
    """List every evaluated model: how good, how large, how fast."""
    from rich.console import Console

    from flows.models import models_table

    Console().print(models_table(project()))


def doctor(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A stage's newest run, or an MLflow run id.")] = None,
) -> None:
    """Look at versions, cores, GPU, folders and services; with RUN at how that run fared. Exit status 1: not well."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.doctor import examine

    root = project()
    if run is not None:
        from pipeline.checkup import check_up

        found = check_up(root, run)
        Console(highlight=False).print(found.summary, *([found.table()] if found.findings else []))
        raise typer.Exit(1 if found.findings else 0)
    checks = list(examine(root))
    table = Table("", "what", "found")
    for check in checks:
        mark = Text("ok", style="green") if check.ok else Text("broken", style="red")
        table.add_row(mark, check.name, Text(check.detail))
    Console().print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def digest(
    what: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint's folder, or files of data as params say.")],
) -> None:
    """Print the digest that pins a checkpoint or a data source in params.yaml."""
    from pipeline.data.pins import folder_digest, path_digest, permitted
    from pipeline.model.remote import checkpoint_digest

    with permitted():
        root = _data_root()
        for folder in (Path(what), root / what):
            if (folder / "config.json").is_file():
                print(checkpoint_digest(folder))
                return
        print(folder_digest(root / what) if (root / what).is_dir() else path_digest(what, root))


def _data_root() -> Path:
    """Where relative paths of data count from: in a project as params have it, elsewhere this folder."""
    from pipeline.data.sources import data_root

    try:
        root = project()
    except InputError:
        return Path.cwd()
    return data_root(root)
