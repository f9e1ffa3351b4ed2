"""Put a model to work: one question, a server, another project's server."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.champion import announcer
from pipeline.cli.common import project


def ask(
    question: Annotated[str, typer.Argument(help='For instance "47+85=?".')],
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="A model folder.")] = None,
) -> None:
    """Put a question to a model: the one that is served here, else the recipe's last one."""
    root = project()
    from rich.console import Console
    from rich.text import Text

    from pipeline.ask import answer
    from pipeline.job import PARAMS_FILE
    from pipeline.params import load_params

    completion, who = answer(question, root, load_params(root / PARAMS_FILE), model)
    print(f"{who}:", file=sys.stderr)
    console = Console(highlight=False)
    console.print(Text(completion.thinking, style="dim"))
    console.print(Text(completion.answer if completion.well_formed else "(no well-formed answer)", style="bold"))


def serve(
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model folder; without it the champion, wherever it moves.")
    ] = None,
    host: Annotated[str, typer.Option(help="Any but this machine's own takes API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_keys: Annotated[Path | None, typer.Option(metavar="FILE", help="One a line; or R1FLOW_API_KEYS.")] = None,
) -> None:
    """Serve a model by OpenAI's API; a page to try it is at /. Limits: machine.serving of a project's params.yaml."""
    from pipeline.job import PARAMS_FILE
    from pipeline.params import Machine, load_params
    from pipeline.serving.server import Listening, serve_champion
    from pipeline.serving.server import serve as serve_model

    if model is None:
        root = project()
        serve_champion(root, Listening(host, port, api_keys, root), load_params(root / PARAMS_FILE), announcer())
        return
    found = Path.cwd() / PARAMS_FILE  # a release is served in a project or out of it
    machine = load_params(found).machine if found.is_file() else Machine()
    serve_model(model, Listening(host, port, api_keys, found.parent if found.is_file() else None), machine)


class Target(StrEnum):
    vllm = "vllm"
    llama_cpp = "llama.cpp"
    kserve = "kserve"


def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that is written to.")],
    to: Annotated[Target, typer.Option("--to", help="What is to serve it.")],
    release: Annotated[str | None, typer.Option(metavar="NAME", help="Without it the recipe's final model.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URI", help="kserve: where the cluster finds the files, s3://… or pvc://….")
    ] = None,
) -> None:
    """Write what serves a release elsewhere: a command, a conversion or a manifest. Nothing is copied."""
    from pipeline.export.targets import export as write

    for file in write(project(), out, to.value, release, storage):
        print(file)
