"""The command line: thin, and everything heavy is imported after the arguments are known.

Alone in pipeline/ this package knows flows/, which it starts; the rest is free of Prefect and DVC.
"""

import sys

import typer

from pipeline.cli import bench, store
from pipeline.cli.answers import ask, export, serve
from pipeline.cli.champion import history, promote, rollback
from pipeline.cli.recipe import digest, doctor, models, report, run, status, study
from pipeline.cli.sizing import plan, plan_memory
from pipeline.errors import EXPECTED, exit_code
from pipeline.process import keep_freed_memory, spin_briefly

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes twice as fast
    help="From a base model to a deployed reasoning model, by the recipe of DeepSeek-R1.",
)
for command in (
    run, status, models, report, doctor, study, ask, serve, export, promote, rollback, history,
    plan, plan_memory, digest,
):  # fmt: skip
    app.command()(command)
app.add_typer(bench.commands, name="bench")
app.add_typer(store.commands, name="store")


def main() -> None:
    spin_briefly()
    keep_freed_memory()
    try:
        app()
    except (*EXPECTED, ConnectionError) as error:
        if isinstance(error, ConnectionError) and type(error) is not ConnectionError:
            raise  # not ours: it does not say which place is meant
        print(error, file=sys.stderr)
        sys.exit(exit_code(error))
